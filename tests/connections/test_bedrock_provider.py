"""The ladder on Bedrock: lists, proofs of credentials, and the server's own ones."""

from __future__ import annotations

import configparser
import datetime as dt
import json
import os
import sys
import threading
from typing import Any

import httpx
import orjson
import pytest
from botocore.loaders import Loader

from connections import providers
from connections.choices import Outcome, Rung
from connections.ladder import Subject, climb, verdict
from connections.providers import aws_environment
from connections.providers.base import ErrorKind, ListedModel, ProviderError
from connections.providers.bedrock import _host
from tests.connections.aws import IAM, SESSION, aws_client, target
from tests.connections.wires import asking, canned, client, replies, text_of
from tests.fakes.bedrock import ACCESS_KEY, EXPIRED_ACCESS_KEY, SESSION_ACCESS_KEY
from tests.fakes.server import GOOD_KEY, key_hash
from workspaces import egress

BEDROCK = providers.get("bedrock")


@pytest.fixture(autouse=True)
def forgotten(fakes):
    fakes.reset()
    aws_environment.chain.forget()
    yield
    aws_environment.chain.forget()


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch, tmp_path):
    """No credentials of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


# -- addresses -------------------------------------------------------------------------------------


def test_every_region_of_every_partition_has_its_domain():
    partitions = Loader().load_data("partitions")["partitions"]
    assert len(partitions) > 5
    for partition in partitions:
        for region in partition["regions"]:
            if region.endswith("-global"):
                continue
            suffix = partition["outputs"]["dnsSuffix"]
            assert _host("sts", region) == f"https://sts.{region}.{suffix}"


def test_the_network_rung_dials_the_host_of_the_chat(fakes):
    own = BEDROCK.origin(target(None, region="eu-west-3"))
    assert own == "https://bedrock-runtime.eu-west-3.amazonaws.com"
    assert BEDROCK.origin(target(fakes)) == fakes.bedrock
    assert BEDROCK.origin(target(None, region="x.evil.example")) == ""


# -- lists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_aws", [False, True])
@pytest.mark.parametrize("auth", ["iam_credentials", "api_key"])
async def test_the_list_has_what_can_be_called_and_the_profiles(fakes, auth, at_aws):
    async with aws_client(fakes) if at_aws else client() as http:
        listed = await BEDROCK.list_models(http, target(None if at_aws else fakes, auth))
    by_id = {model.id: model for model in listed}
    assert by_id["echo"] == ListedModel("echo", "Echo", supports_images=True)
    assert by_id["amazon.words-v1:0"].supports_images is False
    assert by_id["us.anthropic.echo-v1:0"].supports_images is True
    team = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/team1"
    assert by_id[team].name == "US x.y"
    for absent in ("anthropic.echo-v1:0", "amazon.embed-v1:0", "amazon.slowpoke-v1:0"):
        assert absent not in by_id
    assert "us.amazon.embed-v1:0" not in by_id
    hosts = {record["headers"]["host"] for record in fakes.requests()}
    assert hosts == ({"bedrock.us-east-1.amazonaws.com"} if at_aws else {fakes.url[7:]})


Answer = tuple[int, Any, dict[str, str]]  # status, JSON or its bytes, headers


def response(answer: Answer) -> httpx.Response:
    status, content, headers = answer
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))


def lists(models: Answer, profiles: Answer) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        return response(models if request.url.path.endswith("/foundation-models") else profiles)

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


def ok(content: Any) -> Answer:
    return 200, content, {}


def refused(status: int, name: str) -> Answer:
    return status, {"message": ""}, {"x-amzn-errortype": name}


MODELS = ok({"modelSummaries": [{"modelId": "m"}]})
PROFILES = ok(
    {"inferenceProfileSummaries": [{"inferenceProfileId": "us.m", "type": "SYSTEM_DEFINED"}]}
)
FORBIDDEN = refused(403, "AccessDeniedException")
ABSENT = refused(404, "UnknownOperationException")


@pytest.mark.parametrize(
    ("models", "profiles", "expected"),
    [
        (MODELS, PROFILES, ["m", "us.m"]),
        (MODELS, FORBIDDEN, ["m"]),
        (FORBIDDEN, PROFILES, ["us.m"]),
        (MODELS, ABSENT, ["m"]),
        (FORBIDDEN, FORBIDDEN, ErrorKind.FORBIDDEN),
        (ABSENT, ABSENT, ErrorKind.ENDPOINT_NOT_FOUND),
        # half a list would drop the other half from a connection whose list is kept in step
        (MODELS, refused(429, "ThrottlingException"), ErrorKind.RATE_LIMITED),
        (FORBIDDEN, refused(403, "ExpiredTokenException"), ErrorKind.AUTH),
        (ok({"modelSummaries": 5}), PROFILES, ErrorKind.PROTOCOL),
        (ok([]), PROFILES, ErrorKind.PROTOCOL),
    ],
)
async def test_one_list_may_be_forbidden(models, profiles, expected):
    async with lists(models, profiles) as http:
        try:
            found = [model.id for model in await BEDROCK.list_models(http, target(None))]
        except ProviderError as error:
            found = error.kind
    assert found == expected


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"modelId": 5},
        {"modelId": ""},
        {"inferenceProfileId": 5, "models": 7},
        {"inferenceProfileId": "p", "models": [5, {"modelArn": 5}]},
        {"inferenceProfileId": "p", "status": "GONE"},
        {"modelId": "m", "inputModalities": "TEXT", "outputModalities": [5], "modelName": 5},
    ],
)
async def test_odd_entries_of_the_lists_are_no_unmapped_exception(entry):
    models = ok({"modelSummaries": [entry]})
    profiles = ok({"inferenceProfileSummaries": [entry]})
    async with lists(models, profiles) as http:
        listed = await BEDROCK.list_models(http, target(None))
    assert all(isinstance(model.id, str) and model.id for model in listed)


async def test_a_list_without_end_is_read_to_a_bound():
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        if request.url.path.endswith("/foundation-models"):
            return response(MODELS)
        return response(ok({"inferenceProfileSummaries": [], "nextToken": "again"}))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        await BEDROCK.list_models(http, target(None))
    assert len(asked) == 11


@pytest.mark.parametrize(
    ("base_url", "kind"), [("", "endpoint_not_found"), ("http://h", "connect")]
)
async def test_the_host_of_the_lists_may_be_out_of_reach(base_url, kind):
    """A private network often leads to the host of the chat only."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        with pytest.raises(ProviderError) as caught:
            await BEDROCK.list_models(http, target(None, base_url=base_url))
    assert caught.value.kind == kind


# -- proofs ----------------------------------------------------------------------------------------


async def test_sts_proves_iam_credentials(fakes):
    async with aws_client(fakes) as http:
        for secret in (IAM, SESSION):
            assert await BEDROCK.check_auth(http, target(None, secret=secret), "m") is True
    assert {r["headers"]["host"] for r in fakes.requests()} == {"sts.us-east-1.amazonaws.com"}


@pytest.mark.parametrize(
    "secret",
    [
        IAM | {"secret_access_key": "wrong"},
        IAM | {"access_key_id": "AKIAWRONG"},
        SESSION | {"access_key_id": EXPIRED_ACCESS_KEY},
    ],
)
async def test_sts_refuses_wrong_ones(fakes, secret):
    async with aws_client(fakes) as http:
        with pytest.raises(ProviderError) as caught:
            await BEDROCK.check_auth(http, target(None, secret=secret), "m")
    assert caught.value.kind is ErrorKind.AUTH


@pytest.mark.parametrize(
    "answer",
    [
        (403, {"Error": {"Code": "AccessDenied", "Message": "denied"}}, {}),
        (503, "busy", {}),
        (200, b"<GetCallerIdentityResponse/>", {}),
        httpx.ConnectError("no route"),
    ],
)
async def test_what_sts_can_not_tell_is_left_to_the_answer(answer):
    def respond(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return response(answer)

    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as http:
        assert await BEDROCK.check_auth(http, target(None), "m") is False


@pytest.mark.parametrize("auth", ["iam_credentials", "api_key"])
async def test_at_a_base_url_nothing_goes_to_aws(fakes, auth):
    """`client` reaches loopback, and `_AWSHere` isn't there: a call to AWS would fail."""
    hosts = []

    async def note(request):
        hosts.append(request.url.host)

    async with client() as http:
        http.event_hooks = {"request": [note]}
        assert await BEDROCK.check_auth(http, target(fakes, auth), "m") is False
        await BEDROCK.list_models(http, target(fakes, auth))
        await replies(http, target(fakes, auth), asking("echo"))
    assert set(hosts) == {"127.0.0.1"}


async def test_a_key_is_proven_by_awss_own_list_and_refused_there(fakes):
    async with aws_client(fakes) as http:
        assert await BEDROCK.check_auth(http, target(None, "api_key"), "m") is True
        with pytest.raises(ProviderError) as caught:
            wrong = target(None, "api_key", secret={"api_key": "ABSK-wrong"})
            await BEDROCK.check_auth(http, wrong, "m")
    assert caught.value.kind is ErrorKind.AUTH
    async with lists(FORBIDDEN, FORBIDDEN) as http:
        assert await BEDROCK.check_auth(http, target(None, "api_key"), "m") is False


# -- the ladder ------------------------------------------------------------------------------------


@pytest.fixture
def dialled(monkeypatch):
    """The rung `network` without a network; the others use the client that they are given."""
    dialled: list[str] = []

    async def dial(url, policy, *, seconds):
        dialled.append(url)

    monkeypatch.setattr(egress, "dial", dial)
    return dialled


def outcomes(results):
    return " ".join(
        f"{r.rung.value}:{'+' if r.outcome is Outcome.PASSED else '-'}{r.kind}"
        for r in results
        if r.outcome is not Outcome.NOT_TESTED
    )


ALL = "config:+ network:+ auth:+ models:+ answer:+ stream:+"


@pytest.mark.parametrize("auth", ["iam_credentials", "api_key"])
async def test_a_whole_climb_at_aws(fakes, dialled, auth):
    async with aws_client(fakes) as http:
        results = await climb(Subject("echo", target(None, auth), BEDROCK), client=http)
    assert outcomes(results) == ALL
    assert dialled == ["https://bedrock-runtime.us-east-1.amazonaws.com"]


@pytest.mark.parametrize("auth", ["iam_credentials", "api_key"])
async def test_a_whole_climb_at_a_base_url(fakes, settings, auth):
    settings.EGRESS_ALLOW = "127.0.0.0/8"
    try:
        results = await climb(Subject("us.anthropic.echo-v1:0", target(fakes, auth), BEDROCK))
    finally:
        await egress.close_clients()
    assert outcomes(results) == ALL
    assert results[list(Rung).index(Rung.AUTH)].ms is None  # proven by the answer


async def test_credentials_that_may_not_list_are_good_all_the_same(fakes, dialled):
    where = target(None, base_url=f"{fakes.url}/bedrock-nolist")
    async with client() as http:
        results = await climb(Subject("echo", where, BEDROCK), client=http)
        lower = await climb(Subject("echo", where, BEDROCK), client=http, upto=Rung.MODELS)
    assert outcomes(results) == "config:+ network:+ auth:+ answer:+ stream:+"
    models = results[list(Rung).index(Rung.MODELS)]
    assert (models.outcome, models.kind) == (Outcome.NOT_TESTED, "")
    assert "permit" in models.detail
    assert verdict(results).passed is True
    assert outcomes(lower) == "config:+ network:+"
    assert verdict(lower).passed is None


@pytest.mark.parametrize(
    ("model", "secret", "expected"),
    [
        ("no-such-model", IAM, "config:+ network:+ auth:+ models:-model_not_found"),
        ("err-403", IAM, "config:+ network:+ auth:+ models:+ answer:-forbidden"),
        ("err-429", IAM, "config:+ network:+ auth:+ models:+ answer:-rate_limited"),
        (
            "early-end",
            IAM,
            "config:+ network:+ auth:+ models:+ answer:+ stream:-truncated",
        ),
        ("echo", IAM | {"secret_access_key": "no"}, "config:+ network:+ auth:-auth"),
    ],
)
async def test_a_fault_fails_on_its_rung(fakes, dialled, model, secret, expected):
    async with aws_client(fakes) as http:
        subject = Subject(model, target(None, secret=secret), BEDROCK)
        results = await climb(subject, client=http)
    assert outcomes(results) == expected
    assert verdict(results).passed is False


# -- the server's own credentials ------------------------------------------------------------------


def write(path, section: str, **values: str) -> None:
    parser = configparser.RawConfigParser()
    parser.read(path)
    parser[section] = values
    with path.open("w") as file:
        parser.write(file)


def shared(tmp_path, secret=SESSION, section="default") -> None:
    names = {"aws_access_key_id": secret["access_key_id"]}
    names["aws_secret_access_key"] = secret["secret_access_key"]
    if token := secret.get("session_token"):
        names["aws_session_token"] = token
    write(tmp_path / "credentials", section, **names)


async def chat(fakes) -> tuple[str, ProviderError | None]:
    async with aws_client(fakes) as http:
        where = target(None, "environment")
        events, error = await replies(http, where, asking("echo", "hi"))
    return text_of(events), error


async def test_variables_are_used(fakes, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SESSION["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SESSION["secret_access_key"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION["session_token"])
    assert await chat(fakes) == ("hi", None)
    assert fakes.requests()[0]["key"] == key_hash(SESSION_ACCESS_KEY)


async def test_the_region_is_the_connections(fakes, monkeypatch, tmp_path):
    shared(tmp_path)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://evil.example")
    assert await chat(fakes) == ("hi", None)
    assert fakes.requests()[0]["headers"]["host"] == "bedrock-runtime.us-east-1.amazonaws.com"


async def test_a_profile_is_used(fakes, monkeypatch, tmp_path):
    shared(tmp_path, IAM, "team")
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert await chat(fakes) == ("hi", None)
    assert fakes.requests()[0]["key"] == key_hash(ACCESS_KEY)


async def test_sts_proves_them_and_the_ladder_passes(fakes, dialled, tmp_path):
    shared(tmp_path)
    async with aws_client(fakes) as http:
        results = await climb(Subject("echo", target(None, "environment"), BEDROCK), client=http)
    assert outcomes(results) == ALL


async def test_the_variable_of_a_bedrock_key_wins(fakes, monkeypatch, tmp_path):
    shared(tmp_path)
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", GOOD_KEY)
    assert await chat(fakes) == ("hi", None)
    assert fakes.requests()[0]["key"] == key_hash(GOOD_KEY)
    async with aws_client(fakes) as http:
        assert await BEDROCK.check_auth(http, target(None, "environment"), "m") is True
    assert fakes.requests()[-1]["path"] == "/foundation-models"


async def test_credentials_that_expire_are_renewed(fakes, monkeypatch, tmp_path):
    """By a program that gives others each time, the first ones being about to expire."""
    count = tmp_path / "count"
    now = dt.datetime.now(dt.UTC)
    answers = []
    for secret, minutes in ((SESSION, 1), (IAM, 600)):
        answer = {
            "Version": 1,
            "AccessKeyId": secret["access_key_id"],
            "SecretAccessKey": secret["secret_access_key"],
            "Expiration": (now + dt.timedelta(minutes=minutes)).isoformat(),
        }
        if token := secret.get("session_token"):
            answer["SessionToken"] = token
        answers.append(answer)
    program = tmp_path / "program.py"
    program.write_text(
        "import json, pathlib\n"
        f"count = pathlib.Path({str(count)!r})\n"
        "n = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (n + 1))\n"
        f"print(json.dumps(json.loads({json.dumps(answers)!r})[min(n, 1)]))\n"
    )
    write(tmp_path / "config", "default", credential_process=f"{sys.executable} {program}")
    keys = []
    for _ in range(3):
        assert await chat(fakes) == ("hi", None)
        keys.append(fakes.requests()[-1]["key"])
    assert keys[-1] == key_hash(ACCESS_KEY)
    assert len(count.read_text()) == 2  # the second ones are good for hours


async def test_a_file_that_people_rewrite_is_read_again(fakes, monkeypatch, tmp_path):
    shared(tmp_path, IAM)
    assert await chat(fakes) == ("hi", None)
    shared(tmp_path, SESSION)
    await chat(fakes)
    monkeypatch.setattr(aws_environment, "MAX_AGE", 0.0)
    await chat(fakes)
    keys = [record["key"] for record in fakes.requests()]
    assert keys == [*[key_hash(ACCESS_KEY)] * 2, key_hash(SESSION_ACCESS_KEY)]


@pytest.mark.parametrize(
    "why", ["nothing", "no such profile", "half of a key", "a program that fails", "broken file"]
)
async def test_without_usable_credentials_nothing_is_sent(fakes, monkeypatch, tmp_path, why):
    canary = "canary-of-the-program-0123456789"
    match why:
        case "no such profile":
            monkeypatch.setenv("AWS_PROFILE", "nobody")
        case "half of a key":
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHALF")
        case "a program that fails":
            program = tmp_path / "program.py"
            program.write_text(f"import sys; sys.exit({canary!r})")
            write(tmp_path / "config", "default", credential_process=f"{sys.executable} {program}")
        case "broken file":
            (tmp_path / "credentials").write_text("[default\nnonsense")
    text, error = await chat(fakes)
    assert (text, error.kind) == ("", ErrorKind.AUTH)
    assert canary not in str(error)
    assert fakes.requests() == []


async def test_a_chain_that_hangs_is_a_timeout(fakes, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(aws_environment.chain, "read", lambda: release.wait(30) and {})
    monkeypatch.setattr(aws_environment, "SECONDS", 0.1)
    try:
        _, error = await chat(fakes)
    finally:
        release.set()
    assert error.kind is ErrorKind.TIMEOUT


async def test_what_aws_quotes_of_the_servers_credentials_is_scrubbed(fakes, tmp_path):
    shared(tmp_path, SESSION | {"secret_access_key": "wrong/0123456789/0123456789"})
    _, error = await chat(fakes)  # the fake quotes the token, as AWS does
    assert error.kind is ErrorKind.AUTH
    for start in range(0, len(SESSION["session_token"]) - 8, 4):
        assert SESSION["session_token"][start : start + 8] not in error.message


@pytest.mark.parametrize("auth", ["iam_credentials", "api_key"])
async def test_the_environment_does_nothing_to_other_connections(fakes, monkeypatch, auth):
    def forbidden():
        raise AssertionError("asked")

    monkeypatch.setattr(aws_environment.chain, "read", forbidden)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "other")
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "other")
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "https://evil.example")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    async with aws_client(fakes) as http:
        _, error = await replies(http, target(None, auth), asking("echo"))
    assert error is None
    # and without a secret it isn't looked for there
    async with canned() as http:
        _, error = await replies(http, target(None, auth, secret={}), asking("echo"))
    assert error.kind is ErrorKind.AUTH
