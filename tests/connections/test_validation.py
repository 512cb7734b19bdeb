"""What a connection's fields may hold."""

import json

import pytest
from django.core.exceptions import ValidationError

from connections.validation import (
    TOKEN_URI,
    clean_aws_region,
    clean_connection,
    clean_gcp_project,
    clean_gcp_region,
    clean_secret,
    clean_slug,
    models_text,
    normalise_base_url,
    parse_headers,
    parse_models,
)

GOOD = {
    "name": "Local",
    "provider_type": "openai_compat",
    "auth_type": "none",
    "base_url": "http://localhost:11434/v1",
    "models": "qwen3",
    "default_model": "qwen3",
}


def sentence_of(call, *arguments, **named):
    with pytest.raises(ValidationError) as caught:
        call(*arguments, **named)
    return caught.value.messages[0]


@pytest.mark.parametrize(
    ("text", "provider_type", "wire", "expected"),
    [
        (" HTTPS://API.Example.com:443/v1/ ", "openai_compat", "", "https://api.example.com/v1"),
        ("http://h:80/", "openai_compat", "", "http://h"),
        ("http://h:8080/v1/chat/completions", "openai_compat", "", "http://h:8080/v1"),
        ("https://h/v1/chat/completions/", "openai", "", "https://h/v1"),
        ("https://h/api/v1/messages", "anthropic_compat", "", "https://h/api"),
        ("https://h/api/v1", "anthropic_compat", "", "https://h/api"),
        ("https://api.anthropic.com/v1", "anthropic", "", "https://api.anthropic.com"),
        ("https://h/v1/messages", "openai_compat", "anthropic-messages", "https://h"),
        ("https://h/v1", "anthropic_compat", "openai-completions", "https://h/v1"),
        # the wire format of another type is kept without effect
        ("https://h/v1", "anthropic", "openai-completions", "https://h"),
        ("https://h/v1", "bedrock", "", "https://h/v1"),
        ("http://[::1]:11434/v1", "openai_compat", "", "http://[::1]:11434/v1"),
        ("http://[0:0:0:0:0:0:0:1]/v1", "openai_compat", "", "http://[::1]/v1"),
        ("https://bücher.example/v1", "openai_compat", "", "https://xn--bcher-kva.example/v1"),
        ("", "openai_compat", "", ""),
    ],
)
def test_a_base_url_is_reduced_to_its_base(text, provider_type, wire, expected):
    assert normalise_base_url(text, provider_type, wire) == expected
    assert normalise_base_url(expected, provider_type, wire) == expected


@pytest.mark.parametrize(
    "text",
    [
        "ftp://h/v1",
        "file:///etc/passwd",
        "api.example.com/v1",
        "//h/v1",
        "https://",
        "https:///v1",
        "https://user:pass@h/v1",
        "https://key@h",
        "https://h\\@evil/v1",
        "https://h/v1?key=abc",
        "https://h/v1?",
        "https://h/v1#x",
        "https://h:0/v1",
        "https://h:99999/v1",
        "https://h:/v1",
        "https://h:port/v1",
        "https://h h/v1",
        "https://h/\x00",
        "https://h/v1\nHost: evil",
        "https://h/a/../b",
        "https://[::1",
        "https://[fe80::1%25eth0]/v1",
        "https://%6c%6fcalhost/v1",
        "https://-h-/v1",
        "https://" + "a" * 64 + ".example/v1",
    ],
)
def test_what_is_not_a_plain_http_address_is_refused(text):
    assert sentence_of(normalise_base_url, text, "openai_compat")


def test_models_come_from_lines_and_from_json():
    assert parse_models("a\n\n  b \r\na\n") == ["a", "b"]
    entries = [
        "qwen3",
        {
            "id": "llava",
            "contextWindow": 32768,
            "supportsImages": True,
            "more": {"x": [1, 2.5, None]},
        },
    ]
    assert parse_models(json.dumps(entries)) == entries
    assert parse_models(entries) == entries
    assert parse_models(models_text(entries)) == entries
    assert parse_models(models_text(["a", "b"])) == ["a", "b"]
    assert parse_models(None) == parse_models("  ") == []


@pytest.mark.parametrize(
    "given",
    [
        "[1]",
        "{}",
        '["a",]',
        "[" * 100_000,
        "[" + "9" * 5000 + "]",
        '[{"name": "no id"}]',
        '[{"id": ""}]',
        '[{"id": 5}]',
        '[{"id": "a", "contextWindow": NaN}]',
        '[{"id": "a", "contextWindow": 0}]',
        '[{"id": "a", "contextWindow": -1}]',
        '[{"id": "a", "contextWindow": true}]',
        '[{"id": "a", "contextWindow": "128000"}]',
        '[{"id": "a", "contextWindow": 1.5}]',
        '[{"id": "a", "contextWindow": 1e400}]',
        '[{"id": "a", "supportsImages": "yes"}]',
        '[{"id": "a", "other": Infinity}]',
        '[{"id": "a", "other": "\\u0000"}]',
        '[{"id": "a", "\\ud800": 1}]',
        '[{"id": "a", "name": 7}]',
        '["a", {"id": "a", "name": "A"}]',
        ["x" * 201],
        [f"m{n}" for n in range(2_001)],
        {"id": "a"},
        [["a"]],
        7,
    ],
)
def test_models_that_cannot_be_used_are_refused(given):
    assert sentence_of(parse_models, given)


def test_a_refused_model_is_named_by_its_number():
    assert sentence_of(parse_models, ["a", {"id": "b", "supportsImages": 1}]).startswith("Model 2:")


def test_a_whole_connection_is_cleaned():
    result = clean_connection(GOOD)
    assert result.ok
    assert result.values["models"] == ["qwen3"]
    assert result.values["enabled"] is True
    assert result.values["supports_images"] is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": " "}, "name"),
        ({"slug": "new"}, "slug"),
        ({"slug": "Bad Slug"}, "slug"),
        ({"slug": "a\n"}, None),
        ({"provider_type": "pi"}, "provider_type"),
        ({"auth_type": "oauth"}, "auth_type"),
        ({"base_url": ""}, "base_url"),
        ({"default_model": ""}, "default_model"),
        ({"default_model": "other"}, "default_model"),
        ({"models": "[", "default_model": "x"}, "models"),
        ({"custom_endpoint_api": "grpc"}, "custom_endpoint_api"),
        ({"mid_stream_behavior": "stop"}, "mid_stream_behavior"),
        ({"codex_path": "/bin/sh"}, "codex_path"),
        ({"supports_images": "perhaps"}, "supports_images"),
        ({"provider_type": "bedrock", "auth_type": "iam_credentials"}, "aws_region"),
        (
            {"provider_type": "vertex", "auth_type": "environment", "gcp_region": "us-central1"},
            "gcp_project_id",
        ),
        ({"provider_type": "openai", "auth_type": "environment"}, "base_url"),
        (
            {"provider_type": "openai", "auth_type": "api_key_with_endpoint", "base_url": ""},
            "base_url",
        ),
        ({"note": "\x00"}, "note"),
        ({"name": ["a"]}, "name"),
    ],
)
def test_each_fault_stands_at_its_field(changes, field):
    errors = clean_connection(GOOD | changes).errors
    if field is None:
        assert errors == {}
    else:
        assert errors.get(field), errors


def test_a_wrong_pair_names_the_allowed_ones():
    result = clean_connection(GOOD | {"auth_type": "api_key"})
    assert "API key with endpoint, None" in result.errors["auth_type"][0]


def test_the_servers_environment_goes_to_the_providers_own_address_only():
    own = {"name": "A", "provider_type": "anthropic", "auth_type": "environment"}
    assert clean_connection(own).ok
    assert clean_connection(own | {"base_url": "https://api.anthropic.com/v1"}).ok
    assert "base_url" in clean_connection(own | {"base_url": "https://evil.example"}).errors


def test_an_allowed_codex_path_is_taken(settings):
    settings.CODEX_PATHS = ("/opt/codex",)
    assert clean_connection(GOOD | {"codex_path": "/opt/codex"}).ok


@pytest.mark.parametrize("slug", ["a\nb", "import", "a-", "ä"])
def test_a_slug_that_cannot_be_one_is_refused(slug):
    assert sentence_of(clean_slug, slug)


def test_regions_and_projects_are_matched_whole():
    assert clean_aws_region("us-gov-west-1") == "us-gov-west-1"
    assert clean_aws_region("cn-north-1") == "cn-north-1"
    assert clean_aws_region("eusc-de-east-1") == "eusc-de-east-1"
    assert clean_gcp_region("global") == "global"
    assert clean_gcp_project("my-project-1") == "my-project-1"
    for call, bad in [
        (clean_aws_region, "us-east-1.evil.example/"),
        (clean_aws_region, "us-east-1#"),
        (clean_gcp_region, "us-central1/../../x"),
        (clean_gcp_project, "p/../q"),
        (clean_gcp_project, "Proj"),
    ]:
        assert sentence_of(call, bad)


def test_headers_come_from_lines_and_from_json():
    expected = {"X-Team": "blue: 1", "HTTP-Referer": "https://h/"}
    assert parse_headers("X-Team:  blue: 1\n\nHTTP-Referer: https://h/") == expected
    assert parse_headers(json.dumps(expected)) == expected
    assert parse_headers(expected) == expected
    assert parse_headers("") == parse_headers(None) == parse_headers("{}") == {}


@pytest.mark.parametrize(
    "given",
    [
        "Host: evil",
        "content-LENGTH: 5",
        "Transfer-Encoding: chunked",
        "Proxy-Authorization: x",
        "Authorization: Bearer x",
        "X Y: 1",
        "X-A",
        "X-A:",
        "X-A: 1\nx-a: 2",
        '{"X-A": "1", "X-A": "2"}',
        '{"X-A": "1\\r\\nHost: evil"}',
        '{"X-A": 1}',
        '{"X-A": {}}',
        '{"X-A": ',
        {"X-A": "a\nb"},
        {"X-A": "ключ"},
        {"X-A\r\nHost": "1"},
        "X-A: 1\rHost: evil",
        {f"X-{n}": "1" for n in range(21)},
        ["X-A: 1"],
    ],
)
def test_headers_that_would_change_the_request_are_refused(given):
    assert sentence_of(parse_headers, given, auth_type="api_key")


def test_a_refused_header_does_not_show_its_value():
    assert "canary" not in sentence_of(parse_headers, {"X-A": "canary\x00"})


def test_authorization_may_be_written_by_hand_without_a_key():
    assert parse_headers("Authorization: Basic eA==", auth_type="none")


def test_nothing_typed_is_no_secret_and_a_part_of_one_is_an_error():
    assert clean_secret("api_key", {}).ok
    assert clean_secret("api_key", {"api_key": "  "}).values == {}
    assert clean_secret("api_key", {"api_key": " k'\"<&% "}).values == {"api_key": "k'\"<&%"}
    assert clean_secret("none", {"api_key": "k"}).values == {}
    partly = clean_secret("iam_credentials", {"access_key_id": "AKIA"})
    assert set(partly.errors) == {"secret_access_key"}
    whole = {"access_key_id": "AKIA", "secret_access_key": "s"}
    assert clean_secret("iam_credentials", whole).values == whole


@pytest.mark.parametrize("key", ["a\nb", "ключ", "k\x00", "••••", 7, "k" * 20_000])
def test_a_key_that_cannot_be_sent_is_refused(key):
    result = clean_secret("api_key", {"api_key": key})
    assert result.errors["api_key"]
    assert result.values == {}


def service_account(**changes):
    info = {
        "type": "service_account",
        "project_id": "p-123456",
        "private_key": "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n",
        "client_email": "a@p.iam.gserviceaccount.com",
        "token_uri": TOKEN_URI,
        "universe_domain": "googleapis.com",
    } | changes
    return json.dumps({k: v for k, v in info.items() if v is not None})


def test_a_service_account_file_is_kept_whole():
    result = clean_secret("service_account_file", {"service_account_json": service_account()})
    assert json.loads(result.values["service_account_json"]) == json.loads(service_account())


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        service_account(type="external_account"),
        service_account(type="authorized_user"),
        service_account(token_uri="https://evil.example/token"),
        service_account(token_uri=None),
        service_account(universe_domain="evil.example"),
        service_account(credential_source={"file": "/etc/passwd"}),
        service_account(executable="x"),
        service_account(private_key=None),
        service_account(client_email={"a": 1}),
    ],
)
def test_other_google_credentials_are_refused(text):
    result = clean_secret("service_account_file", {"service_account_json": text})
    assert result.errors["service_account_json"]
    assert "secret" not in repr(result.values)


def test_a_secret_is_not_in_its_repr():
    assert "canary" not in repr(clean_secret("api_key", {"api_key": "canary"}))
