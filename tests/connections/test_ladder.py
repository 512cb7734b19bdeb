"""What a climb tests, and how each fault shows: on the right rung, with its own kind."""

import asyncio
import datetime as dt
import socket
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from connections import ladder, providers
from connections.choices import ALLOWED_AUTH, Outcome, Rung
from connections.ladder import RungResult, Subject, climb, subject_of, verdict
from connections.models import Connection
from connections.providers.base import Done, ErrorKind, ProviderError, Target, TextDelta
from connections.sentences import Reason
from workspaces import egress


@pytest.fixture(autouse=True)
def loopback_is_allowed(settings):
    settings.EGRESS_ALLOW = "127.0.0.0/8,::1"


@pytest.fixture(autouse=True)
async def closed_clients():
    yield
    await egress.close_clients()


def openai(fakes, model="echo", key=None, **fields):
    values = {
        "provider_type": "openai_compat",
        "auth_type": "api_key_with_endpoint",
        "base_url": fakes.openai,
        "secret": {"api_key": fakes.good_key if key is None else key},
    } | fields
    target = Target(**values)
    return Subject(model, target, providers.get(target.provider_type))


def anthropic(fakes, model="echo", key=None):
    secret = {"api_key": fakes.good_key if key is None else key}
    target = Target("anthropic", "api_key", base_url=fakes.anthropic, secret=secret)
    return Subject(model, target, providers.get("anthropic"))


def outcomes(results):
    return " ".join(
        f"{r.rung.value}:{'+' if r.outcome is Outcome.PASSED else '-'}{r.kind}"
        for r in results
        if r.outcome is not Outcome.NOT_TESTED
    )


ALL = "config:+ network:+ auth:+ models:+ answer:+ stream:+"


async def test_a_whole_climb_passes_every_rung(fakes):
    results = await climb(openai(fakes))
    assert outcomes(results) == ALL
    assert [r.rung for r in results] == list(Rung)
    assert verdict(results).passed is True
    timed = {r.rung for r in results if r.ms is not None}
    assert {Rung.NETWORK, Rung.MODELS, Rung.ANSWER, Rung.STREAM} <= timed
    assert outcomes(await climb(anthropic(fakes))) == ALL


def test_a_validation_took_as_long_as_its_rungs_the_stream_within_the_answer():
    times = {Rung.NETWORK: 7, Rung.MODELS: 14, Rung.ANSWER: 257, Rung.STREAM: 12}
    results = [RungResult(rung, Outcome.PASSED, times.get(rung)) for rung in Rung]
    assert verdict(results).latency_ms == 7 + 14 + 257
    untimed = [RungResult(rung, Outcome.NOT_TESTED) for rung in Rung]
    assert verdict(untimed).latency_ms is None


async def test_an_answer_costs_sixteen_tokens_at_most(fakes):
    fakes.reset()
    await climb(openai(fakes))
    chats = [r for r in fakes.requests() if r["method"] == "POST"]
    assert len(chats) == 1
    assert chats[0]["max_tokens"] == 16


async def test_up_to_models_no_answer_is_asked_for(fakes):
    fakes.reset()
    results = await climb(anthropic(fakes), upto=Rung.MODELS)
    assert outcomes(results) == "config:+ network:+ auth:+ models:+"
    assert verdict(results).passed is True
    assert not [r for r in fakes.requests() if r["method"] == "POST"]


async def test_a_key_that_nothing_proved_is_not_green(fakes):
    results = await climb(openai(fakes), upto=Rung.MODELS)
    assert outcomes(results) == "config:+ network:+ models:+"
    assert verdict(results).passed is None


async def test_without_a_key_the_list_of_models_proves_enough(fakes):
    subject = openai(fakes, auth_type="none", base_url=fakes.openai_nokey, secret={})
    results = await climb(subject, upto=Rung.MODELS)
    assert outcomes(results) == "config:+ network:+ auth:+ models:+"
    assert verdict(results).passed is True


@pytest.mark.parametrize("make", [openai, anthropic])
async def test_a_wrong_key_fails_on_auth(fakes, make):
    results = await climb(make(fakes, key="sk-wrong"))
    assert outcomes(results) == "config:+ network:+ auth:-auth"
    assert verdict(results).passed is False
    assert verdict(results).kind == "auth"


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("err-403", "forbidden"),
        ("err-quota", "quota"),
        ("err-429", "rate_limited"),
        ("err-400", "bad_request"),
        ("err-400-context", "context_too_long"),
        ("err-413", "too_large"),
        ("err-500", "server"),
        ("err-503", "overloaded"),
        ("err-529", "overloaded"),
        ("redirect", "redirect"),
        ("html", "protocol"),
    ],
)
@pytest.mark.parametrize("make", [openai, anthropic])
async def test_a_refused_answer_has_its_own_kind(fakes, make, model, kind):
    results = await climb(make(fakes, model))
    failed = [r for r in results if r.outcome is Outcome.FAILED]
    assert [r.kind for r in failed] == [kind]
    assert verdict(results).passed is False
    by_rung = {r.rung: r for r in results}
    assert by_rung[Rung.STREAM].outcome is Outcome.NOT_TESTED


async def test_a_model_that_is_nowhere_fails_on_models(fakes):
    results = await climb(openai(fakes, "unheard-of"))
    assert "models:-model_not_found" in outcomes(results)
    assert "answer" not in outcomes(results)


async def test_an_alias_the_list_leaves_out_passes_when_it_answers(fakes):
    results = await climb(openai(fakes, "fast-1000tps-3"))
    assert outcomes(results) == ALL


async def test_whether_an_alias_is_there_is_open_without_an_answer(fakes):
    results = await climb(anthropic(fakes, "fast-1000tps-3"), upto=Rung.MODELS)
    assert outcomes(results) == "config:+ network:+ auth:+"
    assert verdict(results).passed is None


async def test_a_clean_end_counts_even_without_text(fakes):
    assert outcomes(await climb(openai(fakes, "empty"))) == ALL
    assert outcomes(await climb(anthropic(fakes, "empty"))) == ALL


@pytest.mark.parametrize("model", ["cut", "early-end"])
async def test_a_stream_that_breaks_off_fails_on_stream(fakes, model):
    results = await climb(openai(fakes, model))
    assert outcomes(results).endswith("answer:+ stream:-truncated")
    assert verdict(results).passed is False


async def test_silence_is_a_timeout(fakes, monkeypatch):
    monkeypatch.setitem(ladder.SECONDS, Rung.ANSWER, 0.5)
    results = await climb(openai(fakes, "stall-first"))
    assert outcomes(results).endswith("answer:-timeout")


async def test_an_answer_without_end_is_given_up(fakes):
    class Endless(type(providers.get("openai_compat"))):
        async def stream(self, client, target, request):
            while True:
                yield TextDelta("word " * 200)

    async with asyncio.timeout(10):
        results = await climb(Subject("echo", openai(fakes).target, Endless()))
    assert outcomes(results).endswith("stream:-protocol")


async def test_a_wrong_path_is_told_from_a_wrong_key(fakes):
    results = await climb(openai(fakes, base_url=f"{fakes.url}/nothing/v1"))
    assert outcomes(results) == "config:+ network:+ answer:-endpoint_not_found"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def test_nobody_listening_is_unreachable(fakes):
    results = await climb(openai(fakes, base_url=f"http://127.0.0.1:{free_port()}/v1"))
    assert outcomes(results) == "config:+ network:-connect"


async def test_a_name_without_an_address_is_not_found(fakes):
    results = await climb(openai(fakes, base_url="https://nowhere.invalid/v1"))
    assert outcomes(results) == "config:+ network:-dns"


async def test_an_address_the_policy_refuses_is_never_dialled(fakes, settings):
    fakes.reset()
    settings.EGRESS_ALLOW = ""
    results = await climb(openai(fakes))
    assert outcomes(results) == "config:+ network:-egress"
    assert "PATCHBAY_EGRESS_ALLOW" in results[1].detail
    assert fakes.requests() == []


async def test_a_server_without_tls_fails_on_tls(fakes):
    results = await climb(openai(fakes, base_url=fakes.openai.replace("http:", "https:")))
    assert outcomes(results) == "config:+ network:-tls"


def untrusted(folder):
    """The server's side of TLS, with a certificate that it signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_a_certificate_nobody_trusts_fails_on_tls(fakes, tmp_path):
    context = untrusted(tmp_path)
    received = []

    async def serve(reader, writer):
        received.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        results = await climb(openai(fakes, base_url=f"https://localhost:{port}/v1"))
    assert outcomes(results) == "config:+ network:-tls"
    assert b"".join(received) == b""


async def test_a_fault_of_ours_is_told_without_its_text(fakes, caplog):
    class Broken(type(providers.get("openai_compat"))):
        async def check_auth(self, client, target, model):
            raise RuntimeError(f"canary {target.secret}")

    subject = Subject("echo", openai(fakes).target, Broken())
    results = await climb(subject)
    assert outcomes(results) == "config:+ network:+ auth:-internal"
    assert "canary" not in caplog.text
    assert fakes.good_key not in str(results)


async def test_a_stream_that_ends_without_a_final_word_is_truncated(fakes):
    class Silent(type(providers.get("openai_compat"))):
        async def stream(self, client, target, request):
            if False:
                yield Done("stop")

    results = await climb(Subject("echo", openai(fakes).target, Silent()))
    assert outcomes(results).endswith("answer:-truncated")


async def test_cancelling_a_climb_is_not_swallowed(fakes):
    task = asyncio.create_task(climb(openai(fakes, "stall-first")))
    await asyncio.to_thread(
        fakes.wait_for, lambda: any(r["model"] == "stall-first" for r in fakes.requests())
    )
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- the configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [Reason.INCOMPLETE, Reason.SEALED, Reason.NOT_AVAILABLE])
async def test_a_faulty_configuration_makes_no_call(reason):
    results = await climb(Subject(fault=reason))
    assert outcomes(results) == f"config:-{reason}"
    assert all(r.ms is None for r in results)
    assert verdict(results).passed is False


@pytest.mark.parametrize(
    ("provider_type", "auth_type"),
    [(provider, auth) for provider, auths in ALLOWED_AUTH.items() for auth in auths],
)
def test_every_provider_works_in_every_way_to_authenticate(provider_type, auth_type):
    assert auth_type in providers.get(provider_type).auth_types


@pytest.mark.django_db
def test_a_type_of_another_version_fails_on_config(monkeypatch):
    made = Connection.objects.create(
        slug="c", name="C", provider_type="vertex", auth_type="environment", default_model="m"
    )
    monkeypatch.delitem(providers.PROVIDERS, "vertex")
    assert subject_of(made).fault is Reason.NOT_AVAILABLE


def test_a_result_survives_being_stored():
    result = RungResult(Rung.ANSWER, Outcome.FAILED, 12, ErrorKind.AUTH.value, "words")
    assert RungResult.from_json(result.as_json()) == result
    assert result.words.title == "Key rejected"


def test_a_provider_error_keeps_its_words_short():
    assert len(ProviderError(ErrorKind.SERVER, "x" * 9_999).message) == 500
