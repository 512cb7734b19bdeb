"""Adding and editing a connection: the form in all its shapes, and what it refuses."""

import html as markup
import json
import re

import pytest
from django.forms import Select

from connections.capabilities import capabilities
from connections.choices import ALLOWED_AUTH, SECRET_FIELDS
from connections.forms import SECRET_NAMES, ConnectionForm
from connections.models import Connection, ProbeResult, Secret
from connections.presets import PRESETS
from connections.targets import target_of
from tests.builders import KEY, give_access, make_connection, make_workspace
from tests.fakes.server import GOOD_KEY, FakeProviders
from tests.workspaces.test_egress import ELSEWHERE, THIS_MACHINE
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db

DATA = {
    "name": "Router",
    "provider_type": "openai_compat",
    "auth_type": "api_key_with_endpoint",
    "base_url": "https://llm.example.com/v1",
    "models": "small\nlarge",
    "default_model": "small",
    "api_key": KEY,
}
SERVICE_ACCOUNT = {
    "type": "service_account",
    "client_email": "robot@project.iam.gserviceaccount.com",
    "private_key": "-----BEGIN PRIVATE KEY-----\nprivate-canary\n-----END PRIVATE KEY-----\n",
    "token_uri": "https://oauth2.googleapis.com/token",
}
SECRETS = {
    "api_key": KEY,
    "access_key_id": "AKIACANARY0123456789",
    "secret_access_key": "secret-canary-0123456789-abcdef",
    "session_token": "session-canary-0123456789-abcdef",
    "service_account_json": json.dumps(SERVICE_ACCOUNT),
    "extra_headers": "X-Team: header-canary-0123456789",
}
CANARIES = ("0123456789", "private-canary", "canary")


@pytest.fixture
def page(client_for, alice):
    return client_for(alice)


@pytest.fixture
def fakes():
    with FakeProviders() as running:
        yield running


def fields_of(html):
    """The names of the form's visible controls."""
    form = html.partition('id="connection-form"')[2].partition("</form>")[0]
    names = re.findall(r'<(?:input|select|textarea)[^>]* name="(\w+)"', form)
    return {name for name in names if name not in ("csrfmiddlewaretoken", "_refresh")}


def value_of(html, name):
    found = re.search(rf'<input[^>]* name="{name}"[^>]*>', html)[0]
    value = re.search(r' value="([^"]*)"', found)
    return markup.unescape(value[1]) if value else ""


def error_of(html, name):
    """The sentence at a field, "" for none."""
    found = re.search(rf'<ul class="errorlist" id="id_{name}_error"><li>(.*?)</li>', html)
    return markup.unescape(found[1]) if found else ""


# -- adding ----------------------------------------------------------------------------------------


def test_a_connection_is_made_probed_and_shown(page, alice):
    answer = page.post("/connections/new/", DATA)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/connections/router/")
    made = Connection.objects.get()
    assert made.created_by == alice
    assert made.is_default
    assert made.model_ids == ["small", "large"]
    assert dict(target_of(made).secret) == {"api_key": KEY}
    assert ProbeResult.objects.get().trigger == "save"
    shown = page.get("/connections/router/").text
    assert 'data-status="checking"' in shown
    assert KEY not in shown


def test_htmx_is_led_to_the_page_of_the_connection(page):
    answer = page.post("/connections/new/", DATA, headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (200, "/connections/router/")


@pytest.mark.parametrize("key", PRESETS)
def test_every_preset_fills_the_form_in_and_can_be_saved(page, settings, key):
    settings.EGRESS_ALLOW = "127.0.0.0/8,::1"
    preset = PRESETS[key]
    html = page.get(f"/connections/new/?preset={key}").text
    form = ConnectionForm(initial=preset.initial)
    assert form.auth in ALLOWED_AUTH[form.provider]
    assert value_of(html, "name") == preset.name
    data = {**preset.initial, **{name: SECRETS[name] for name in SECRET_FIELDS[form.auth]}}
    data["base_url"] = data.get("base_url") or ""
    if form.provider.is_compat:
        data["base_url"] = data["base_url"] or "https://llm.example.com/v1"
        data["default_model"] = data.get("default_model") or "some-model"
    if form.provider == "vertex":
        data["gcp_project_id"] = "team-project"
    answer = page.post("/connections/new/", data)
    assert answer.status_code == 303, re.findall(r"errorlist.*?</ul>", answer.text)
    made = Connection.objects.get()
    assert (made.provider_type, made.auth_type) == (form.provider, form.auth)
    # Its address is already what the wire format wants: nothing is cut from it.
    if preset.values.get("base_url"):
        assert made.base_url == preset.values["base_url"]


@pytest.mark.parametrize(
    "key", [k for k, p in PRESETS.items() if p.values.get("models") and k != "vercel"]
)
def test_the_models_of_a_preset_are_known_to_the_price_table(key):
    values = PRESETS[key].values
    connection = Connection(
        **{name: values.get(name, "") for name in ("provider_type", "base_url")}
    )
    for model in values["models"].split():
        assert capabilities(connection, model).price_input is not None, model


def test_an_unknown_preset_is_an_empty_form(page):
    answer = page.get("/connections/new/?preset=../../etc")
    assert answer.status_code == 200
    assert value_of(answer.text, "name") == ""


# -- the form changes with provider and auth type --------------------------------------------------


@pytest.mark.parametrize(
    ("provider_type", "auth_type", "there", "not_there"),
    [
        ("anthropic", "api_key", {"api_key", "base_url"}, {"aws_region", "custom_endpoint_api"}),
        ("anthropic", "oauth", {"models"}, {"api_key"}),
        ("anthropic", "environment", {"models"}, {"api_key"}),
        (
            "anthropic_compat",
            "api_key_with_endpoint",
            {"api_key", "base_url", "custom_endpoint_api", "auth_header", "supports_images"},
            {"codex_path"},
        ),
        ("openai_compat", "none", {"base_url", "max_tokens_field"}, {"api_key"}),
        ("openai", "api_key", {"codex_path", "api_key"}, {"custom_endpoint_api"}),
        (
            "bedrock",
            "iam_credentials",
            {"aws_region", "access_key_id", "secret_access_key", "session_token"},
            {"api_key", "gcp_region"},
        ),
        ("bedrock", "api_key", {"aws_region", "api_key"}, {"access_key_id"}),
        (
            "vertex",
            "service_account_file",
            {"gcp_project_id", "gcp_region", "service_account_json"},
            {"aws_region", "api_key"},
        ),
    ],
)
def test_each_provider_and_auth_type_has_its_fields(
    page, provider_type, auth_type, there, not_there
):
    data = {"_refresh": "1", "provider_type": provider_type, "auth_type": auth_type}
    answer = page.post("/connections/new/", data)
    assert answer.status_code == 200
    shown = fields_of(answer.text)
    assert there <= shown
    assert not not_there & shown
    always = {"name", "slug", "models", "default_model", "mid_stream_behavior", "enabled", "note"}
    assert always | {"provider_type", "auth_type", "base_url", "extra_headers"} <= shown


def folded_of(html):
    """The names of the controls that open on request."""
    return set(
        re.findall(r' name="(\w+)"', html.partition("<details")[2].partition("</details>")[0])
    )


def test_the_base_url_of_a_cloud_is_folded_until_one_is_set(page):
    data = {"_refresh": "1", "provider_type": "bedrock", "auth_type": "iam_credentials"}
    plain = page.post("/connections/new/", data).text
    assert "base_url" in folded_of(plain)
    assert "private endpoint or a proxy" in plain
    made = make_connection(
        "bedrock",
        provider_type="bedrock",
        auth_type="iam_credentials",
        base_url="https://vpce.example.com",
        aws_region="us-east-1",
    )
    html = page.get(f"/connections/{made.slug}/edit/").text
    assert value_of(html, "base_url") == "https://vpce.example.com"
    assert "base_url" in fields_of(html) - folded_of(html)


def test_the_servers_own_credentials_take_no_base_url(page):
    data = {
        "name": "B",
        "provider_type": "bedrock",
        "auth_type": "environment",
        "aws_region": "us-east-1",
        "base_url": "https://vpce.example.com",
        "default_model": "m",
    }
    answer = page.post("/connections/new/", data)
    assert answer.status_code == 422
    assert "Leave the base URL empty" in error_of(answer.text, "base_url")
    assert not Connection.objects.exists()


def test_another_provider_keeps_what_was_typed_but_the_secrets(page):
    data = {**DATA, **SECRETS, "_refresh": "1", "provider_type": "bedrock", "note": "<b>mine</b>"}
    for headers in ({}, {"HX-Request": "true"}):
        answer = page.post("/connections/new/", data, headers=headers)
        assert answer.status_code == 200
        assert value_of(answer.text, "name") == "Router"
        assert "small\nlarge" in answer.text
        assert "&lt;b&gt;mine" in answer.text
        assert 'value="iam_credentials" selected' in answer.text
        assert not [word for word in CANARIES if word in answer.text]
        assert ("<html" in answer.text) == (not headers)
    assert not Connection.objects.exists()
    assert not AuditEvent.objects.exists()


def test_an_edit_can_be_refilled_too(page):
    make_connection("local")
    data = {"_refresh": "1", "provider_type": "anthropic", "name": "Changed"}
    html = page.post("/connections/local/edit/", data).text
    assert value_of(html, "name") == "Changed"
    assert "custom_endpoint_api" not in fields_of(html)
    assert Connection.objects.get().name == "Local"


def test_the_choices_ask_for_the_form_without_sending_secrets(page):
    html = page.get("/connections/new/").text
    select = re.search(r'<select[^>]* name="provider_type"[^>]*>', html)[0]
    for name in (*SECRET_NAMES, "extra_headers"):
        assert name in re.search(r'hx-params="not ([^"]*)"', select)[1].split(",")


def test_without_javascript_a_button_updates_the_fields(page):
    html = page.get("/connections/new/").text
    quiet = html.partition("<noscript>")[2].partition("</noscript>")[0]
    assert 'name="_refresh"' in quiet


def test_the_region_says_whose_it_is(page):
    html = page.get("/connections/new/?preset=bedrock").text
    assert "The region where you have model access." in html


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"slug": "Not A Slug"}, "slug"),
        ({"slug": "new"}, "slug"),
        ({"slug": "validate"}, "slug"),
        ({"base_url": ""}, "base_url"),
        ({"base_url": "https://user:pw@llm.example.com"}, "base_url"),
        ({"base_url": "ftp://llm.example.com"}, "base_url"),
        ({"models": '[{"name": "no id"}]'}, "models"),
        ({"default_model": "another"}, "default_model"),
        ({"provider_type": "copilot"}, "provider_type"),
        ({"auth_type": "oauth"}, "auth_type"),
        ({"auth_type": "bearer_token"}, "auth_type"),
        ({"custom_endpoint_api": "grpc"}, "custom_endpoint_api"),
        ({"mid_stream_behavior": "both"}, "mid_stream_behavior"),
        ({"supports_images": "perhaps"}, "supports_images"),
        ({"api_key": "k\x00ey"}, "api_key"),
        ({"api_key": "schlüssel"}, "api_key"),
        ({"extra_headers": "Host: elsewhere"}, "extra_headers"),
        ({"extra_headers": "no colon"}, "extra_headers"),
        ({"provider_type": "bedrock", "auth_type": "environment", "base_url": ""}, "aws_region"),
        ({"note": "x" * 2_001}, "note"),
    ],
)
def test_a_wrong_field_is_422_with_its_sentence_and_what_was_typed(page, change, field):
    for headers in ({}, {"HX-Request": "true"}):
        answer = page.post("/connections/new/", {**DATA, **change}, headers=headers)
        assert answer.status_code == 422
        assert 'role="alert" tabindex="-1" autofocus' in answer.text
        if field in fields_of(answer.text):
            assert error_of(answer.text, field)
            assert f'href="#id_{field}"' in answer.text
        if "name" not in change:
            assert value_of(answer.text, "name") == "Router"
        assert KEY not in answer.text
    assert not Connection.objects.exists()


def test_a_form_that_sends_nothing_is_422(page):
    assert page.post("/connections/new/", {}).status_code == 422
    wrong_kind = page.post("/connections/new/", b"[1", content_type="application/json")
    assert wrong_kind.status_code == 415


@pytest.mark.parametrize("url", [*THIS_MACHINE, *ELSEWHERE])
def test_no_spelling_of_a_special_address_can_be_saved(page, settings, url):
    settings.EGRESS_ALLOW = ""
    address = url.format(p=8080) if "{p}" in url else url
    for provider in ({}, {"provider_type": "anthropic_compat"}):
        data = {**DATA, **provider, "base_url": address}
        answer = page.post("/connections/new/", data)
        assert answer.status_code == 422
        assert error_of(answer.text, "base_url")
    made = make_connection("local")
    answer = page.post("/connections/local/edit/", {**DATA, "base_url": address})
    assert answer.status_code == 422
    made.refresh_from_db()
    assert made.base_url == "https://llm.example.com/v1"


def test_an_address_that_the_operator_names_can_be_saved(page, settings):
    settings.EGRESS_ALLOW = "10.1.2.3:11434"
    data = {**DATA, "base_url": "http://10.1.2.3:11434/v1"}
    assert page.post("/connections/new/", data).status_code == 303
    data = {**DATA, "base_url": "http://10.1.2.3:11435/v1"}
    assert page.post("/connections/new/", data).status_code == 422


@pytest.mark.parametrize("path", ["/bin/sh", "/usr/bin/codex; id", "../codex", "codex"])
def test_the_codex_binary_is_one_that_the_operator_lists(page, settings, path):
    settings.CODEX_PATHS = ("/opt/codex/codex",)
    data = {"name": "Codex", "provider_type": "openai", "auth_type": "api_key", "api_key": KEY}
    html = page.post("/connections/new/", {**data, "_refresh": "1"}).text
    assert isinstance(ConnectionForm(initial=data).fields["codex_path"].widget, Select)
    assert "/opt/codex/codex" in html
    answer = page.post("/connections/new/", {**data, "codex_path": path})
    assert answer.status_code == 422
    assert error_of(answer.text, "codex_path")
    answer = page.post("/connections/new/", {**data, "codex_path": "/opt/codex/codex"})
    assert answer.status_code == 303
    assert Connection.objects.get().codex_path == "/opt/codex/codex"


@pytest.mark.parametrize(
    "change",
    [
        {"type": "external_account"},
        {"type": "authorized_user"},
        {"token_uri": "https://evil.example/token"},
        {"credential_source": {"executable": {"command": "/bin/id"}}},
        {"credential_source": {"file": "/etc/passwd"}},
        {"universe_domain": "evil.example"},
    ],
)
def test_only_googles_own_service_accounts_are_taken(page, change):
    data = {
        "name": "Vertex",
        "provider_type": "vertex",
        "auth_type": "service_account_file",
        "gcp_project_id": "my-project",
        "gcp_region": "us-central1",
        "service_account_json": json.dumps({**SERVICE_ACCOUNT, **change}),
    }
    answer = page.post("/connections/new/", data)
    assert answer.status_code == 422
    assert error_of(answer.text, "service_account_json")
    assert "private-canary" not in answer.text
    assert not Connection.objects.exists()


# -- editing ---------------------------------------------------------------------------------------


def test_an_edit_shows_every_field_and_hints_at_the_secret(page):
    page.post("/connections/new/", DATA)
    html = page.get("/connections/router/edit/").text
    assert value_of(html, "name") == "Router"
    assert value_of(html, "base_url") == "https://llm.example.com/v1"
    assert "Stored, ends in …x7Q2. Leave blank to keep." in html
    assert value_of(html, "api_key") == ""
    assert "slug" not in fields_of(html)
    assert KEY not in html


def resave(page, slug):
    """Posts an edit form back as a browser does that nobody touched."""
    form = ConnectionForm(connection=Connection.objects.get(slug=slug))
    shown = [bound for group in form.groups for row in group.rows for bound in row]
    data = {bound.html_name: bound.value() for bound in shown if bound.value() is not None}
    return page.post(f"/connections/{slug}/edit/", data)


def test_an_untouched_form_saved_again_changes_nothing(page):
    headers = "X-Team: blue"
    page.post("/connections/new/", {**DATA, "extra_headers": headers, "supports_images": "true"})
    before = list(Secret.objects.order_by("pk").values("value", "binding", "created_at"))
    events = AuditEvent.objects.exclude(action="connection.validate").count()
    revision = Connection.objects.get().revision
    assert resave(page, "router").status_code == 303
    assert list(Secret.objects.order_by("pk").values("value", "binding", "created_at")) == before
    assert Connection.objects.get().revision == revision
    assert AuditEvent.objects.exclude(action="connection.validate").count() == events


@pytest.mark.parametrize("key", PRESETS)
def test_what_the_form_shows_of_any_connection_is_what_it_saves(page, key):
    values = PRESETS[key].initial
    Connection.objects.create(
        slug="it",
        **{
            **{name: str(value) for name, value in values.items() if name != "models"},
            "models": values.get("models", "").split() or ["m"],
            "default_model": values.get("default_model") or "m",
            "base_url": values.get("base_url")
            or ("https://llm.example.com" if "compat" in values["provider_type"] else ""),
            "gcp_project_id": "team-project" if values["provider_type"] == "vertex" else "",
        },
    )
    before = Connection.objects.values().get()
    answer = resave(page, "it")
    assert answer.status_code == 303, re.findall(r"errorlist.*?</ul>", answer.text)
    after = Connection.objects.values().get()
    moving = {"checking_until", "next_check_at"}
    assert {k: v for k, v in before.items() if k not in moving} == {
        k: v for k, v in after.items() if k not in moving
    }


def test_a_script_may_send_one_field_and_the_rest_stays(page):
    page.post("/connections/new/", {**DATA, "note": "Ours.", "mid_stream_behavior": "queue"})
    assert page.post("/connections/router/edit/", {"name": "Renamed"}).status_code == 303
    made = Connection.objects.get()
    assert (made.name, made.note, made.mid_stream_behavior, made.enabled) == (
        "Renamed",
        "Ours.",
        "queue",
        True,
    )
    assert dict(target_of(made).secret) == {"api_key": KEY}


def test_the_slug_never_changes(page):
    page.post("/connections/new/", DATA)
    page.post("/connections/router/edit/", {"slug": "other", "name": "Renamed"})
    assert Connection.objects.get().slug == "router"


def test_a_new_key_replaces_the_stored_one(page):
    page.post("/connections/new/", DATA)
    page.post("/connections/router/edit/", {"api_key": "sk-another-0123456789-wxyz"})
    made = Connection.objects.get()
    assert dict(target_of(made).secret) == {"api_key": "sk-another-0123456789-wxyz"}
    assert "ends in …wxyz" in page.get("/connections/router/edit/").text


def test_stored_headers_are_kept_replaced_and_removed(page):
    page.post("/connections/new/", {**DATA, "extra_headers": SECRETS["extra_headers"]})
    html = page.get("/connections/router/edit/").text
    assert "Headers are stored." in html
    assert "header-canary" not in html
    page.post("/connections/router/edit/", {"extra_headers": ""})
    assert Secret.objects.filter(purpose="headers").exists()
    page.post("/connections/router/edit/", {"extra_headers": "{}"})
    assert not Secret.objects.filter(purpose="headers").exists()


# -- a stored secret goes nowhere else -------------------------------------------------------------


def moved(base_url, change):
    host, _, port = base_url.removeprefix("http://").removesuffix("/openai/v1").partition(":")
    return {
        "scheme": {"base_url": f"https://{host}:{port}/openai/v1"},
        "host": {"base_url": f"http://localhost:{port}/openai/v1"},
        "provider": {"provider_type": "anthropic_compat"},
        "auth type": {"provider_type": "openai"},
        "nothing left": {"provider_type": "anthropic", "auth_type": "api_key", "base_url": ""},
    }[change]


@pytest.mark.parametrize("change", ["scheme", "host", "provider", "auth type", "nothing left"])
@pytest.mark.parametrize("typed", [{}, {"api_key": ""}, {"api_key": "   "}])
def test_another_destination_needs_the_key_again(page, settings, fakes, change, typed):
    settings.EGRESS_ALLOW = "127.0.0.0/8,::1"
    data = {**DATA, "base_url": fakes.openai, "api_key": GOOD_KEY}
    assert page.post("/connections/new/", data).status_code == 303
    fakes.reset()
    before = Connection.objects.values().get(), Secret.objects.values().get()
    answer = page.post("/connections/router/edit/", moved(fakes.openai, change) | typed)
    assert answer.status_code == 422
    assert "Enter this again" in error_of(answer.text, "api_key")
    assert GOOD_KEY not in answer.text
    page.post("/connections/router/validate/")
    after = Connection.objects.values().get(), Secret.objects.values().get()
    assert before == after
    assert fakes.requests() == []


def test_another_port_needs_the_key_again_and_its_server_hears_nothing(page, settings, fakes):
    settings.EGRESS_ALLOW = "127.0.0.0/8,::1"
    page.post("/connections/new/", {**DATA, "base_url": fakes.openai, "api_key": GOOD_KEY})
    with FakeProviders() as thief:
        answer = page.post("/connections/router/edit/", {"base_url": thief.openai})
        assert answer.status_code == 422
        page.post("/connections/router/validate/")
        assert thief.requests() == []
    assert Connection.objects.get().base_url == fakes.openai


def test_another_path_keeps_the_key(page):
    page.post("/connections/new/", DATA)
    change = {"base_url": "https://llm.example.com/other/v1"}
    assert page.post("/connections/router/edit/", change).status_code == 303
    assert dict(target_of(Connection.objects.get()).secret) == {"api_key": KEY}


def test_headers_are_bound_like_the_key(page):
    page.post("/connections/new/", {**DATA, "extra_headers": SECRETS["extra_headers"]})
    change = {"base_url": "https://other.example.com/v1", "api_key": KEY}
    answer = page.post("/connections/router/edit/", change)
    assert answer.status_code == 422
    assert "Enter this again" in error_of(answer.text, "extra_headers")


# -- access ----------------------------------------------------------------------------------------


def test_access_is_opened_to_chosen_workspaces_and_back_to_all(page, workspace):
    sales = make_workspace("sales")
    page.post("/connections/new/", {**DATA, "access": "chosen", "workspaces": ["sales"]})
    made = Connection.objects.get()
    assert Connection.objects.visible_to(sales).exists()
    assert not Connection.objects.visible_to(workspace).exists()
    html = page.get("/connections/router/edit/").text
    assert re.search(r'value="sales"[^>]* checked', html)
    assert not re.search(r'value="support"[^>]* checked', html)
    page.post("/connections/router/edit/", {"access": "chosen", "workspaces": ["support"]})
    assert Connection.objects.visible_to(workspace).exists()
    assert not Connection.objects.visible_to(sales).exists()
    page.post("/connections/router/edit/", {"access": "all"})
    made.refresh_from_db()
    assert made.access == "all"
    assert Connection.objects.visible_to(sales).exists()


def test_changing_access_keeps_what_a_workspace_narrowed(page, workspace):
    connection = make_connection("local", access="chosen")
    give_access(workspace, connection, allowed_models=["small"])
    make_workspace("sales")
    both = {"access": "chosen", "workspaces": ["sales", "support"]}
    page.post("/connections/local/edit/", both)
    assert workspace.connection_rows.get().allowed_models == ["small"]


def test_an_unknown_workspace_is_422(page, workspace):
    answer = page.post("/connections/new/", {**DATA, "access": "chosen", "workspaces": ["no"]})
    assert answer.status_code == 422
    assert not Connection.objects.exists()


# -- secrets on no page ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair",
    [
        {"provider_type": "openai_compat", "auth_type": "api_key_with_endpoint"},
        {"provider_type": "bedrock", "auth_type": "iam_credentials", "base_url": ""},
        {"provider_type": "vertex", "auth_type": "service_account_file", "base_url": ""},
    ],
)
def test_no_page_shows_any_part_of_a_secret_but_its_end(page, workspace, pair):
    region = {"aws_region": "eu-central-1", "gcp_project_id": "project-1", "gcp_region": "eu"}
    answer = page.post("/connections/new/", {**DATA, **SECRETS, **region, **pair})
    assert answer.status_code == 303
    pages = ["", "router/", "router/edit/", "router/row/", "router/delete/confirm/"]
    answers = [page.get(f"/connections/{path}") for path in pages]
    answers.append(page.get("/w/support/settings/ai/"))
    wrong = {**SECRETS, "name": "", "models": '["'}
    answers.append(page.post("/connections/router/edit/", wrong))
    answers.append(page.post("/connections/router/validate/", follow=True))
    for answer in answers:
        shown = f"{answer.headers} {answer.text}"
        assert not [word for word in CANARIES if word in shown], answer.request
