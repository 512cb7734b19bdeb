"""In which language somebody reads: the one of the profile, else the browser's, else ours."""

from __future__ import annotations

import datetime as dt
import json
import re
from decimal import Decimal
from typing import Any

import orjson
import pytest
from django.contrib import messages
from django.core import mail
from django.db import InterfaceError, OperationalError
from django.db import connection as database
from django.http import HttpResponse
from django.template import Context, Template
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from config.middleware import PersonsLanguage
from connections import alerts, ladder
from connections.models import Alert, ProbeResult
from sessions import wording
from sessions.models import UsageDay
from sessions.stream import Encoded, Viewer
from tests.builders import make_connection, make_user
from tests.world import make_world
from workspaces import tasks
from workspaces.models import AuditEvent, User

GERMAN = {"HTTP_ACCEPT_LANGUAGE": "de-AT,de;q=0.9,en;q=0.5"}


def speaks(client: Client, address: str = "/profile/", **headers: str) -> str:
    """The language of a page, as its markup and its headers say."""
    response = client.get(address, **headers)
    found = re.search(r'<html lang="([\w-]+)" dir="(ltr|rtl)">', response.text)
    assert found is not None
    assert found[2] == "ltr"
    assert response.headers["Content-Language"] == found[1]
    assert "Accept-Language" in response.headers["Vary"]
    return found[1]


def choose(client: Client, language: str, name: str = "Bob") -> Any:
    return client.post("/profile/", {"name": name, "language": language})


def test_who_chose_nothing_reads_what_the_browser_asks_for(bob: User, client_for: Any):
    client = client_for(bob)
    assert speaks(client) == "en"
    assert speaks(client, **GERMAN) == "de"
    assert speaks(client, HTTP_ACCEPT_LANGUAGE="fr, es") == "en"
    assert speaks(client, HTTP_ACCEPT_LANGUAGE="de;q=nonsense,,;") == "en"


def test_who_is_not_signed_in_reads_what_the_browser_asks_for(
    alice: User, client_for: Any, settings: Any
):
    settings.MAIL_IS_SET_UP = True
    nobody = client_for(None)
    assert speaks(nobody, "/accounts/login/") == "en"
    assert speaks(nobody, "/accounts/login/", **GERMAN) == "de"
    shown = nobody.get("/accounts/login/", **GERMAN).text
    assert "E-Mail-Adresse" in shown
    assert "Passwort vergessen?" in shown
    wrong = nobody.post("/accounts/login/", {"login": "x", "password": ""}, **GERMAN)
    assert "Dieses Feld ist zwingend erforderlich." in wrong.text  # Django's own


def test_the_choice_counts_in_every_browser_and_for_its_person_alone(
    bob: User, alice: User, client_for: Any
):
    client = client_for(bob)
    answer = choose(client, "de")
    assert answer.status_code == 303
    assert AuditEvent.objects.get(action="user.update").details["fields"] == ["name", "language"]
    assert [str(one) for one in messages.get_messages(answer.wsgi_request)] == [
        "Ihr Profil ist gespeichert."
    ]
    assert speaks(client) == speaks(client_for(bob)) == "de"
    assert speaks(client_for(alice)) == "en"
    assert choose(client, "en").status_code == 303
    assert speaks(client, **GERMAN) == "en"
    assert choose(client, "").status_code == 303
    assert speaks(client, **GERMAN) == "de"


def test_a_language_that_is_none_is_refused_and_nothing_typed_is_lost(bob: User, client_for: Any):
    answer = choose(client_for(bob), "xx", name="Robert")
    assert answer.status_code == 422
    assert 'value="Robert"' in answer.text
    bob.refresh_from_db()
    assert (bob.name, bob.language) == ("", "")


def test_a_form_without_the_choice_leaves_it(bob: User, client_for: Any):
    User.objects.filter(pk=bob.pk).update(language="de")
    assert client_for(bob).post("/profile/", {"name": "Bob"}).status_code == 303
    bob.refresh_from_db()
    assert (bob.name, bob.language) == ("Bob", "de")


def test_a_language_that_is_offered_no_more_counts_as_none(bob: User, client_for: Any):
    User.objects.filter(pk=bob.pk).update(language="tlh")
    client = client_for(bob)
    assert speaks(client) == "en"
    assert speaks(client, **GERMAN) == "de"


def test_errors_are_in_the_language_of_their_reader(bob: User, client_for: Any):
    User.objects.filter(pk=bob.pk).update(language="de")
    client = client_for(bob, enforce_csrf_checks=True)
    assert speaks(client, "/nothing/") == "de"
    assert "Hier ist nichts" in client.get("/nothing/").text
    assert "Das ist Ihnen nicht möglich" in client.get("/connections/").text
    assert "Dieses Formular ist abgelaufen" in client.post("/profile/", {}).text


@pytest.mark.parametrize("fault", [OperationalError, InterfaceError])
def test_without_a_database_the_browser_is_asked(rf: Any, fault: type[Exception]):
    class Away:
        @property
        def language(self) -> str:
            raise fault

    request = rf.get("/", **GERMAN)
    request.user = Away()
    with translation.override("en"):
        PersonsLanguage(lambda request: HttpResponse()).process_request(request)
        assert request.LANGUAGE_CODE == "de"


def test_the_choice_costs_no_query(bob: User, client_for: Any):
    def queries(client: Client) -> int:
        with CaptureQueriesContext(
            database,
        ) as seen:
            assert client.get("/profile/").status_code == 200
        return len(seen)

    client = client_for(bob)
    client.get("/profile/")
    before = queries(client)
    User.objects.filter(pk=bob.pk).update(language="de")
    assert queries(client) == before
    with CaptureQueriesContext(database) as seen:
        client_for(None).get("/accounts/login/")
    assert not [query for query in seen.captured_queries if "workspaces_user" in query["sql"]]


# -- what reaches nobody's browser -------------------------------------------------------------


@pytest.fixture
def failing(db: None, settings: Any) -> Alert:
    settings.MAIL_IS_SET_UP = True
    return Alert.objects.create(
        connection=make_connection(name="Local"),
        state=Alert.State.FAILING,
        since=dt.datetime(2026, 3, 1, 14, 5, tzinfo=dt.UTC),
        error_kind="auth",
        mail=Alert.Delivery.DUE,
        webhook=Alert.Delivery.DUE,
    )


def test_each_reads_a_mail_in_the_own_language(failing: Alert, settings: Any):
    make_user("anna@example.com", is_superuser=True, language="de")
    make_user("ben@example.com", is_superuser=True, language="en")
    make_user("cleo@example.com", is_superuser=True)
    message = alerts.claim(alerts.MAIL)
    assert message is not None
    settings.LANGUAGE_CODE = "de"
    assert alerts._mail(message) == ""
    german, english, ours = mail.outbox
    assert german.subject == "Patchbay: 1 Verbindung fällt aus"
    assert "Local: Fällt aus\nFällt seit 1. März 2026 14:05 UTC aus. Der Anbieter" in german.body
    assert "Abbestellen: http" in german.body
    assert english.subject == "Patchbay: 1 connection fails"
    assert "It fails since March 1, 2026, 2:05 p.m. UTC." in english.body
    assert ours.body == german.body


def test_a_webhook_speaks_our_language(failing: Alert, settings: Any):
    line = alerts.Line.of(failing)
    message = alerts.Message(alerts.WEBHOOK, [line])
    with translation.override("de"):
        body = json.loads(message.body)
    assert body["alerts"][0]["sentence"].startswith("Fällt seit")
    assert body["alerts"][0]["state"] == "failing"
    assert body["alerts"][0]["time"] == failing.at.isoformat()


@pytest.mark.parametrize(
    ("chosen", "asked", "subject"),
    [
        ("", "de", "Ein neues Passwort für Patchbay"),
        ("en", "de", "A new password for Patchbay"),
        ("de", "en", "Ein neues Passwort für Patchbay"),
        ("", "", "A new password for Patchbay"),
    ],
)
def test_a_link_for_a_password_comes_in_the_language_it_was_asked_in(
    bob: User, chosen: str, asked: str, subject: str
):
    User.objects.filter(pk=bob.pk).update(language=chosen)
    tasks.mail_reset(str(bob.pk), asked)
    assert [sent.subject for sent in mail.outbox] == [subject]


def test_an_invitation_speaks_as_who_invites_unless_the_person_is_known(
    alice: User, workspace: Any, client_for: Any, settings: Any
):
    settings.MAIL_IS_SET_UP = True
    User.objects.filter(pk=alice.pk).update(language="de")
    make_user("known@example.com", language="en")
    for address in ("new@example.com", "known@example.com"):
        client_for(alice).post("/w/support/members/invite/", {"email": address, "role": "member"})
    assert [sent.subject for sent in mail.outbox] == [
        "Einladung in Support auf Patchbay",
        "You are invited to Support on Patchbay",
    ]


# -- a running reply ---------------------------------------------------------------------------


def test_two_viewers_of_one_reply_read_it_in_their_languages():
    viewers = [Viewer("0-0", 0, language) for language in ("en", "de", "de")]
    call = {"t": "tool_call", "id": "c", "name": "current_time", "args": {}}
    said = [["rate_limited", {}], ["again", {"n": 3}], ["of a newer worker", {}]]
    events: list[tuple[bytes, dict[str, Any]]] = [
        (b"say", {"said": said}),
        (b"tool", {"m": "m", "b": 0, "c": 1, "call": call}),
        (b"thought", {"m": "m", "b": 1, "c": 1, "text": "<b>Hm</b>"}),
        (b"text", {"m": "m", "b": 2, "k": "text", "o": 0, "t": "Hi"}),
    ]
    for viewer in viewers:
        viewer.catch_up([])
    for number, (name, data) in enumerate(events, start=1):
        event = Encoded.of(b"%d-0" % number, name, orjson.dumps(data))
        for viewer in viewers:
            viewer.put(event)
    english, german, again = (viewer.drain().decode() for viewer in viewers)
    assert german == again
    assert re.findall("event: (.*)", english) == re.findall("event: (.*)", german)
    assert re.findall("event: (.*)", german) == ["notice", "block", "block", "text"]
    assert '"t":"The provider limits the rate. Trying again in 3 seconds."' in english
    assert '"t":"Der Anbieter begrenzt die Anfragen. Neuer Versuch in 3 Sekunden."' in german
    assert "Called without arguments." in english
    assert "Ohne Argumente aufgerufen." in german
    assert "Nachgedacht" in german
    assert "&lt;b&gt;Hm" in german


@pytest.mark.parametrize("name", wording._SENTENCES)
def test_every_sentence_of_a_worker_can_be_said(name: str):
    values = {"n": 1, "name": "Files", "kind": "timeout"}
    english = wording.notice([(name, values)])
    with translation.override("de"):
        assert wording.notice([(name, values)]) not in ("", english)


# -- numbers, dates, and what machines read ----------------------------------------------------

MOMENT = dt.datetime(2026, 12, 3, 14, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("shown", "english", "german"),
    [
        ("{{ 1234567|compact }}", "1.2M", "1,2M"),
        ("{{ 128000|compact }}", "128K", "128K"),
        ("{{ 1099|compact }} {{ 999950|compact }}", "1.1K 1M", "1,1K 1M"),
        ("{{ 10960|compact }} {{ 999|compact }}", "11K 999", "11K 999"),
        ("{{ small|money:4 }} {{ small|money }}", "$0.0047 $0.00", "0,0047 $ 0,00 $"),
        ("{{ cost|money }}", "$1,234.50", "1.234,50 $"),
        ("{{ cost|money:4 }}", "$1,234.5000", "1.234,5000 $"),
        ("{{ 1500|ms }} {{ 1999|ms }}", "1.5 s 2.0 s", "1,5 s 2,0 s"),
        ("{{ moment|date:'DATE_FORMAT' }}", "Dec. 3, 2026", "3. Dezember 2026"),
        (
            "{{ moment|date:'DATETIME_FORMAT' }}",
            "Dec. 3, 2026, 2:05 p.m.",
            "3. Dezember 2026 14:05",
        ),
        ("{{ ago|ago }}", "5 min ago", "vor 5 min"),
        ("{{ day|ago }}", "1 day ago", "vor 1 Tag"),
        ("{{ days|ago }}", "2 days ago", "vor 2 Tagen"),
        ("{{ half|floatformat:1 }}", "0.5", "0,5"),
    ],
)
def test_numbers_and_dates_are_written_as_the_language_does(shown: str, english: str, german: str):
    now = timezone.now()
    context = {
        "cost": Decimal("1234.5"),
        "moment": MOMENT,
        "half": 0.5,
        "small": Decimal("0.004651"),
        "ago": now - dt.timedelta(minutes=5, seconds=30),
        "day": now - dt.timedelta(hours=30),
        "days": now - dt.timedelta(hours=54),
    }
    for language, expected in (("en", english), ("de", german)):
        with translation.override(language):
            text = Template(shown).render(Context(context))
        assert re.sub("<[^>]*>", "", text) == expected


def test_bars_keep_the_numbers_of_markup(db: None):
    with translation.override("de"):
        bar = '{% include "components/progress.html" with value=44.5 label="x" only %}'
        meter = (
            '{% include "components/meter.html" with value=1.5 max=2000 label="x" text="y" only %}'
        )
        html = Template(bar + meter).render(Context({}))
    assert 'value="44.5" max="100"' in html
    assert 'value="1.5" max="2000"' in html


EXPORTS = (
    "/usage/export/?by=day",
    "/w/support/usage/export/?by=person",
    "/metrics",
    "/readyz",
    "/healthz",
)


def test_what_machines_read_is_the_same_in_every_language(db: None, client_for: Any, settings: Any):
    world = make_world()
    settings.METRICS_TOKEN = "t" * 20
    UsageDay.objects.create(
        day=timezone.now().date(),
        workspace=world.support,
        workspace_label="support",
        connection_label="local",
        model="small",
        turns=1234,
        cost=Decimal("1234.5"),
        input_tokens=1234567,
    )
    alice = world.people["alice"]
    client = client_for(alice)
    chat = f"/w/support/sessions/{world.shared.chat.pk}/export/?format=json"
    posts = [
        ("/audit/export/", {"format": kind, "since": "2020-01-01", "until": "2100-01-01"})
        for kind in ("csv", "jsonl")
    ]
    posts.append(("/connections/export/", {"generation": "own", "which": "all"}))

    def read() -> list[str]:
        headers = {"HTTP_AUTHORIZATION": f"Bearer {settings.METRICS_TOKEN}"}
        answers = [client.get(address, **headers) for address in (*EXPORTS, chat)]
        answers += [client.post(address, data) for address, data in posts]
        found = []
        for answer in answers:
            assert answer.status_code in (200, 503)
            assert not answer.headers["content-type"].startswith("text/html")
            content = answer.getvalue() if answer.streaming else answer.content
            found.append(_without_moments(content.decode()))
        return found

    read()  # what the reading itself leaves behind
    AuditEvent.objects.filter(action__contains="export").delete()
    english = read()
    AuditEvent.objects.filter(action__contains="export").delete()
    User.objects.filter(pk=alice.pk).update(language="de")
    german = read()
    assert german == english
    assert "1234.5" in english[0]


def _without_moments(text: str) -> str:
    return "\n".join(
        line for line in text.splitlines() if not re.search("seconds|bytes|export|process_", line)
    )


def test_fields_of_numbers_and_dates_keep_what_browsers_expect(db: None, client_for: Any):
    world = make_world()
    User.objects.update(language="de")
    client = client_for(world.people["alice"])
    limits = {
        "soft_cost": "1000.5",
        "hard_cost": "1234.5",
        "soft_tokens": "",
        "hard_tokens": "9000000",
    }
    assert client.post("/connections/local/budget/", limits).status_code == 303
    html = client.get("/audit/?since=2026-01-02&until=2100-12-31").text
    html += client.get("/connections/local/budget/").text
    fields = re.findall(r"<input [^>]*type=\"(?:number|date)\"[^>]*>", html)
    values = [found[1] for field in fields if (found := re.search(r' value="([^"]+)"', field))]
    assert values == ["2026-01-02", "2100-12-31", "1000.50", "1234.50", "9000000"]
    assert "1.234,50 $" in html  # what is to be read, beside them


def test_what_a_validation_noted_is_read_in_every_language(alice: User, client_for: Any):
    local = make_connection(models=["small"])
    rung = {"rung": "auth", "outcome": "passed", "ms": None, "kind": ""}
    ProbeResult.objects.create(
        connection=local,
        passed=True,
        finished_at=timezone.now(),
        rungs=[{**rung, "detail": "Proven by the answer."}],
    )
    client = client_for(alice)
    assert "Proven by the answer." in client.get("/connections/local/").text
    User.objects.filter(pk=alice.pk).update(language="de")
    assert "Durch die Antwort bewiesen." in client.get("/connections/local/").text
    assert ladder.detail_of({"detail": "no such key"}) == "no such key"
    assert ladder.detail_of({"detail": ""}) == ladder.detail_of({}) == ""
