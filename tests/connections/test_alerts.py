"""Telling that a connection fails and that it works again: when, to whom, once, how it is set."""

import asyncio
import contextlib
import datetime as dt
import hashlib
import hmac
import http.server
import json
import logging
import re
import smtplib
import threading
from decimal import Decimal

import pytest
from django.core import mail
from django.db import connections as databases
from django.db import transaction
from django.utils import timezone
from django.utils.formats import date_format

from config import env
from config.celery import app
from connections import alerts, budgets, tasks
from connections.budgets import Limits
from connections.models import Alert, AlertOptOut, AlertSettings, Budget, Connection, ProbeResult
from connections.registry import Used
from tests.builders import make_connection, make_member, make_user, make_workspace
from tests.fakes import mail as mail_server
from workspaces import vault
from workspaces.models import AuditEvent, Role
from workspaces.runtime import get_runtime

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "a-secret-that-signs-7Kq"
PATH = "/hook/canary-of-the-address"


@pytest.fixture(autouse=True)
def mail_is_set_up(settings):
    settings.MAIL_IS_SET_UP = True


@pytest.fixture(autouse=True)
def loop():
    """The runtime as a worker has it; its threads let go of the database afterwards."""
    yield
    get_runtime().stop(5)


class Hook:
    """A webhook's receiver on loopback: what came, and what it answers next."""

    def __init__(self):
        self.came, self.status, self.before = [], 204, None
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                hook.came.append((self.path, dict(self.headers), body))
                if hook.before:
                    hook.before()
                self.send_response(hook.status)
                if 300 <= hook.status < 400:
                    self.send_header("location", f"http://127.0.0.1:{hook.port}/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}{PATH}"


@pytest.fixture
def hook(settings):
    running = Hook()
    settings.TOOL_EGRESS_ALLOW = f"127.0.0.1:{running.port}"
    thread = threading.Thread(target=running.server.serve_forever, daemon=True)
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()
    thread.join(5)


def use(hook, actor, **fields):
    values = {"failures": 1, "by_mail": False, "webhook_url": hook.url, "webhook_secret": SECRET}
    return alerts.update(actor, **(values | fields))


def probed(connection, passed, *, minutes=0, kind="auth"):
    """What the worker does when a probe has ended; how soon the next is due."""
    at = timezone.now() - dt.timedelta(minutes=minutes)
    result = ProbeResult.objects.create(
        connection=connection,
        started_at=at,
        finished_at=at,
        passed=passed,
        error_kind="" if passed is not False else kind,
    )
    with transaction.atomic():
        return alerts.note(connection, result)


def send(times=1):
    """What beat does once a minute, by so many workers at once."""

    async def together():
        await asyncio.gather(*(alerts.send_due() for _worker in range(times)))

    get_runtime().submit(together()).result(30)


def a_quarter_of_an_hour_passes():
    for channel in alerts.CHANNELS:
        AlertSettings.objects.update(**{f"{channel}_after": timezone.now()})


def states(connection):
    return list(connection.alerts.order_by("at").values_list("state", flat=True))


# -- when ------------------------------------------------------------------------------------------


def test_so_many_failures_in_a_row_make_one_alert_and_a_success_the_other():
    connection = make_connection("local")
    assert probed(connection, False, minutes=50) == alerts.CONFIRM_EVERY
    assert probed(connection, False, minutes=40) == alerts.CONFIRM_EVERY
    assert states(connection) == []
    assert probed(connection, False, minutes=30) == alerts.WATCH_EVERY
    assert probed(connection, False, minutes=20) == alerts.WATCH_EVERY
    assert states(connection) == ["failing"]
    assert probed(connection, True, minutes=10) is None
    assert probed(connection, True) is None
    assert states(connection) == ["failing", "recovered"]
    failing, recovered = connection.alerts.order_by("at")
    assert failing.since == recovered.since < timezone.now() - dt.timedelta(minutes=45)
    assert (failing.mail, failing.webhook) == ("due", "off")


def test_a_success_begins_the_count_anew_and_what_proves_nothing_does_not():
    connection = make_connection("local")
    for minutes, passed in ((9, False), (8, False), (7, True), (6, False), (5, None), (4, False)):
        probed(connection, passed, minutes=minutes)
    assert states(connection) == []
    probed(connection, None, minutes=3)
    assert states(connection) == []
    probed(connection, False, minutes=2)
    assert states(connection) == ["failing"]


def test_the_probes_of_another_connection_do_not_count():
    connection, other = make_connection("local"), make_connection("other")
    for minutes in (3, 2, 1):
        probed(other, False, minutes=minutes)
    probed(connection, False)
    assert (states(connection), states(other)) == ([], ["failing"])


def test_without_anybody_to_tell_it_is_noted_and_looked_at_as_ever(settings):
    settings.MAIL_IS_SET_UP = False
    connection = make_connection("local")
    assert [probed(connection, False, minutes=9 - n) for n in range(3)] == [None] * 3
    assert connection.alerts.get().mail == "off"


def test_a_worker_that_writes_a_failure_down_makes_the_alert_and_looks_again_soon(alice):
    alerts.update(alice, failures=1, by_mail=True)
    connection = make_connection("local", key=None)  # fails before any call
    connection = Connection.objects.get(pk=connection.pk)
    get_runtime().submit(tasks.probe(connection.pk, force=True)).result(30)
    assert connection.probes.get().passed is False
    assert states(connection) == ["failing"]
    soon = Connection.objects.get().next_check_at - timezone.now()
    assert soon < alerts.WATCH_EVERY * 1.2


# -- by mail ---------------------------------------------------------------------------------------


def test_one_mail_to_each_admin_who_wants_it_lists_everything(alice):
    dana = make_user("dana@example.com", is_superuser=True)
    alerts.set_wants_mail(dana, False)
    make_user("bob@example.com")
    make_user("gone@example.com", is_superuser=True, is_active=False)
    alerts.update(alice, failures=1, by_mail=True)
    first, second = make_connection("first"), make_connection("second", name="Second\none")
    probed(first, False, kind="quota")
    probed(first, True)
    probed(second, False, kind="auth")
    send(times=3)
    assert [message.to for message in mail.outbox] == [["alice@example.com"]]
    message = mail.outbox[0]
    assert message.subject == "Patchbay: 2 connections fail, 1 connection works again"
    assert "First: Fails\nIt fails since " in message.body
    assert "The account at the provider has no credit or quota left." in message.body
    assert "First: Works again\nIt works again; it had failed since " in message.body
    assert "Second one: Fails" in message.body
    assert "/connections/first/health/" in message.body
    assert "/connections/alerts/" in message.body
    assert set(Alert.objects.values_list("mail", flat=True)) == {"sent"}
    send()
    assert len(mail.outbox) == 1


def test_there_is_one_message_in_a_quarter_of_an_hour(alice):
    alerts.update(alice, failures=1, by_mail=True)
    first, second = make_connection("first"), make_connection("second")
    probed(first, False)
    send()
    probed(second, False)
    probed(first, True)
    send()
    assert len(mail.outbox) == 1
    a_quarter_of_an_hour_passes()
    send()
    assert len(mail.outbox) == 2
    assert mail.outbox[1].subject == "Patchbay: 1 connection fails, 1 connection works again"


def test_a_mail_that_was_refused_is_due_again_for_a_day(alice, monkeypatch):
    alerts.update(alice, failures=1, by_mail=True)
    probed(make_connection("local"), False)

    def refuse(*arguments):
        raise smtplib.SMTPServerDisconnected("secret words of the server")

    with monkeypatch.context() as broken:
        broken.setattr(alerts, "send_mail", refuse)
        send()
    assert Alert.objects.get().mail == "due"
    assert AlertSettings.objects.get().mail_error == "smtp"
    a_quarter_of_an_hour_passes()
    send()
    assert len(mail.outbox) == 1
    assert AlertSettings.objects.get().mail_error == ""
    probed(make_connection("other"), False)
    Alert.objects.filter(mail="due").update(at=timezone.now() - dt.timedelta(hours=25))
    a_quarter_of_an_hour_passes()
    send()
    assert len(mail.outbox) == 1
    assert set(Alert.objects.values_list("mail", flat=True)) == {"sent", "given_up"}


def test_who_was_told_is_not_told_again_when_a_later_mail_is_refused(alice, monkeypatch):
    make_user("dana@example.com", is_superuser=True)
    alerts.update(alice, failures=1, by_mail=True)
    probed(make_connection("local"), False)
    told = []

    def refuse_the_second(subject, text, sender, to):
        told.extend(to)
        if len(told) > 1:
            raise smtplib.SMTPRecipientsRefused({})

    monkeypatch.setattr(alerts, "send_mail", refuse_the_second)
    send()
    a_quarter_of_an_hour_passes()
    send()
    assert told == ["alice@example.com", "dana@example.com"]
    assert Alert.objects.get().mail == "sent"


def test_a_message_whose_worker_died_is_not_sent_again(alice):
    alerts.update(alice, failures=1, by_mail=True)
    probed(make_connection("first"), False)
    assert alerts.claim(alerts.MAIL) is not None  # and then nothing more
    assert alerts.claim(alerts.MAIL) is None
    a_quarter_of_an_hour_passes()
    probed(make_connection("second"), False)
    send()
    assert [message.body.count("Fails") for message in mail.outbox] == [1]
    assert sorted(Alert.objects.values_list("mail", flat=True)) == ["sent", "unsure"]


def test_the_task_of_beat_sends_what_is_due_and_begins_nothing_else(alice, monkeypatch):
    begun = []
    runtime = get_runtime()

    def submit(coroutine, *, name=""):
        begun.append(name)
        coroutine.close()

    monkeypatch.setattr(runtime, "submit", submit)
    tasks.send_alerts()
    assert begun == []
    alerts.update(alice, failures=1, by_mail=True)
    probed(make_connection("local"), False)
    tasks.send_alerts()
    assert begun == ["alerts"]
    sent = {entry["task"] for entry in app.conf.beat_schedule.values()}
    assert tasks.send_alerts.name in sent


def test_of_a_deleted_connection_nothing_is_told(alice):
    alerts.update(alice, failures=1, by_mail=True)
    connection = make_connection("local")
    probed(connection, False)
    Connection.objects.update(deleted_at=timezone.now())
    send()
    assert mail.outbox == []
    assert Alert.objects.get().mail == "off"


def test_what_waited_when_mail_was_switched_off_is_not_sent_later(alice):
    alerts.update(alice, failures=1, by_mail=True)
    probed(make_connection("local"), False)
    alerts.update(alice, failures=1, by_mail=False)
    alerts.update(alice, failures=1, by_mail=True)
    send()
    assert mail.outbox == []


# -- by a webhook ----------------------------------------------------------------------------------


def test_the_webhook_gets_signed_json(alice, hook):
    use(hook, alice)
    probed(make_connection("local", name="Lökal"), False, kind="quota")
    send(times=3)
    [(path, headers, body)] = hook.came
    assert path == PATH
    expected = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert headers["x-patchbay-signature"] == expected
    sent = json.loads(body)
    assert headers["x-patchbay-delivery"] == sent["id"]
    assert headers["content-type"] == "application/json"
    [told] = sent["alerts"]
    assert (told["name"], told["slug"], told["state"]) == ("Lökal", "local", "failing")
    assert "no credit or quota left" in told["sentence"]
    assert dt.datetime.fromisoformat(told["time"]) == Alert.objects.get().at
    assert told["url"].endswith("/connections/local/health/")
    assert sent["text"].startswith("Patchbay: 1 connection fails")
    assert Alert.objects.get().webhook == "sent"
    assert AuditEvent.objects.filter(action="secret.use").count() == 1


@pytest.mark.parametrize(
    ("status", "error", "requests"),
    [(500, "status 500", 2), (404, "status 404", 2), (307, "redirect", 2)],
)
def test_what_the_webhook_refuses_is_posted_again_and_nothing_is_followed(
    alice, hook, status, error, requests
):
    use(hook, alice)
    probed(make_connection("local"), False)
    hook.status = status
    send()
    assert AlertSettings.objects.get().webhook_error == error
    assert Alert.objects.get().webhook == "due"
    hook.status = 200
    a_quarter_of_an_hour_passes()
    send()
    assert [path for path, _headers, _body in hook.came] == [PATH] * requests
    assert Alert.objects.get().webhook == "sent"
    assert AlertSettings.objects.get().webhook_error == ""


def test_what_may_have_arrived_is_not_posted_again(alice, hook, monkeypatch):
    use(hook, alice)
    probed(make_connection("local"), False)
    answered = threading.Event()
    hook.before = lambda: answered.wait(20)
    monkeypatch.setattr(alerts, "POST_SECONDS", 0.3)
    send()
    answered.set()
    assert Alert.objects.get().webhook == "unsure"
    assert AlertSettings.objects.get().webhook_error == "timeout"
    a_quarter_of_an_hour_passes()
    send()
    assert len(hook.came) == 1


def test_the_rule_of_tools_holds_when_it_is_called_too(alice, hook, settings):
    use(hook, alice)
    probed(make_connection("local"), False)
    settings.TOOL_EGRESS_ALLOW, settings.EGRESS_ALLOW = "", "127.0.0.0/8"
    send()
    assert hook.came == []
    assert AlertSettings.objects.get().webhook_error == "egress"


def test_an_address_that_no_longer_opens_is_called_nowhere(alice, hook):
    use(hook, alice)
    probed(make_connection("local"), False)
    AlertSettings.objects.update(webhook_origin="http://127.0.0.1:1")
    send()
    assert hook.came == []
    assert AlertSettings.objects.get().webhook_error == "sealed"


def test_the_address_stands_in_no_log_page_audit_or_repr(alice, hook, caplog, client_for):
    use(hook, alice)
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore"):  # as the settings have it
        logging.getLogger(name).setLevel(logging.WARNING)
    probed(make_connection("local"), False)
    page = client_for(alice)
    hook.status = 500
    a_quarter_of_an_hour_passes()
    with transaction.atomic():
        message = alerts._to_webhook("test", AlertSettings.objects.get(), [])
    assert message.url == hook.url
    send()
    shown = page.get("/connections/alerts/").text + page.get("/connections/status/").text
    wrong = {"failures": "x", "webhook_url": hook.url, "webhook_secret": SECRET}
    refused = page.post("/connections/alerts/", wrong)
    assert refused.status_code == 422
    audit = repr(list(AuditEvent.objects.values()))
    rows = repr(list(AlertSettings.objects.values()))
    everything = [caplog.text, shown, refused.text, audit, rows, repr(message)]
    for text in everything:
        assert "canary-of-the-address" not in text
        assert SECRET not in text
    assert "canary-of-the-address" not in str(bytes(AlertSettings.objects.get().webhook_url.stored))


# -- of budgets ------------------------------------------------------------------------------------


@pytest.fixture
def sink(settings):
    with mail_server.running() as sink:
        settings.MAILERS = {"default": env.mailer(sink.url)}
        yield sink


@pytest.fixture
def support(alice):
    """A workspace with an admin, wanda, and a budget of 2 and 4 dollars a month."""
    space = make_workspace("support")
    make_member(space, make_user("wanda@example.com"), Role.ADMIN)
    make_member(space, make_user("bob@example.com"), Role.MEMBER)
    budgets.set_limits(alice, space, Limits(soft_cost=Decimal(2), hard_cost=Decimal(4)))
    return space


def spend(space, connection, cost="0", tokens=0, now=None):
    """What the end of a reply does."""
    with transaction.atomic():
        used = Used(Decimal(cost), tokens)
        budgets.add(used, workspace_id=space.pk, connection_id=connection.pk, now=now)


def told():
    return list(Alert.objects.order_by("at", "state").values_list("state", "limit", "mail"))


def test_a_budget_s_notice_and_stop_go_to_the_mail_server_once_a_month(support, alice, sink):
    alerts.update(alice, failures=1, by_mail=True)
    connection = make_connection("local")
    spend(support, connection, "1.99")
    assert told() == []
    for _reply in range(3):
        spend(support, connection, "0.01")
    send(times=3)
    a_quarter_of_an_hour_passes()
    for _reply in range(3):
        spend(support, connection, "2")
    send(times=3)
    a_quarter_of_an_hour_passes()
    send()
    assert told() == [("soft_limit", "$2.00", "sent"), ("hard_limit", "$4.00", "sent")]
    month = date_format(budgets.month_of(None), "F Y")
    notice, stop = (
        [one for one in sink.mails if words in one["subject"]]
        for words in ("1 budget is at its notice", "1 budget is used up")
    )
    assert len(sink.mails) == 4
    for mails in (notice, stop):
        assert [one["to"] for one in mails] == ["alice@example.com", "wanda@example.com"]
    said = notice[0].get_payload()
    assert f"The notice level of its budget, $2.00 for {month}, is reached." in said
    assert f"Its budget of $4.00 for {month} is used up: nothing more" in stop[0].get_payload()
    for one in sink.mails:
        assert "http://127.0.0.1:8000/w/support/usage/" in one.get_payload()
    assert "as an instance admin" in stop[0].get_payload()
    assert "as an admin of the workspace" in stop[1].get_payload()
    # Another month, another notice.
    spend(support, connection, "3", now=timezone.now() + dt.timedelta(days=32))
    assert len(told()) == 3


def test_two_replies_that_end_at_once_tell_of_a_limit_once(support, alice, sink):
    alerts.update(alice, failures=1, by_mail=True)
    connection = make_connection("local")
    budgets.set_limits(alice, connection, Limits(soft_tokens=10, hard_tokens=10))
    gate = threading.Barrier(4)

    def end():
        gate.wait(20)
        try:
            spend(support, connection, "3", 10)
        finally:
            databases.close_all()

    threads = [threading.Thread(target=end) for _reply in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert Budget.objects.get(connection=connection).tokens == 40
    limits = [(state, limit) for state, limit, _mail in told()]
    assert sorted(limits) == [
        *(("hard_limit", "$4.00"), ("hard_limit", "10 tokens")),
        *(("soft_limit", "$2.00"), ("soft_limit", "10 tokens")),
    ]
    send(times=4)
    # What is about the connection goes to instance admins only.
    alice_s, wanda_s = sink.mails
    assert (alice_s["to"], wanda_s["to"]) == ("alice@example.com", "wanda@example.com")
    assert "2 budgets are used up" in alice_s["subject"]
    assert "/connections/local/" in alice_s.get_payload()
    assert "1 budget is used up" in wanda_s["subject"]
    assert "Local" not in wanda_s.get_payload()


def test_the_webhook_is_told_of_a_budget(support, alice, hook):
    use(hook, alice)
    spend(support, make_connection("local"), "5")
    send(times=3)
    [(_path, _headers, body)] = hook.came
    lines = json.loads(body)["alerts"]
    found = {(line["name"], line["slug"], line["state"]) for line in lines}
    assert found == {("Support", "support", "soft_limit"), ("Support", "support", "hard_limit")}
    assert {line["url"] for line in lines} == {"http://127.0.0.1:8000/w/support/usage/"}


def test_a_limit_that_is_set_below_what_was_used_is_told_and_a_moved_one_anew(support, alice):
    spend(support, make_connection("local"), "1.50")
    assert told() == []
    for hard, count in ((Decimal(1), 1), (Decimal("1.10"), 1), (Decimal(9), 1), (Decimal(1), 2)):
        budgets.set_limits(alice, support, Limits(hard_cost=hard))
        assert [state for state, _limit, _mail in told()] == ["hard_limit"] * count


def test_budgets_are_not_told_when_that_is_switched_off(support, alice, client_for):
    page = client_for(alice)
    spend(support, make_connection("local"), "2")
    assert page.post("/connections/alerts/", {"failures": "3", "by_mail": "on"}).status_code == 303
    assert not AlertSettings.objects.get().of_budgets
    spend(support, Connection.objects.get(), "2")
    send()
    assert told() == [("soft_limit", "$2.00", "off"), ("hard_limit", "$4.00", "off")]
    assert mail.outbox == []
    html = page.get("/connections/alerts/").text
    assert "Budget used up" in html
    assert 'href="/w/support/usage/"' in html


# -- setting it ------------------------------------------------------------------------------------


def test_a_signing_secret_is_bound_to_the_host_it_was_entered_for(alice, hook, settings):
    use(hook, alice)
    settings.TOOL_EGRESS_ALLOW = "127.0.0.0/8"
    page = {"failures": 1, "by_mail": False}
    with pytest.raises(alerts.ValidationError) as refused:
        alerts.update(alice, **page, webhook_url="http://127.0.0.1:9/hook")
    assert "webhook_secret" in refused.value.error_dict
    assert AlertSettings.objects.get().webhook_origin == f"http://127.0.0.1:{hook.port}"
    assert alerts.update(alice, **page) == []  # re-saved untouched
    # Another path of the same host keeps it.
    alerts.update(alice, **page, webhook_url=hook.url + "2")
    row = AlertSettings.objects.get()
    assert row.webhook_url.open().decode() == hook.url + "2"
    assert row.webhook_secret.open().decode() == SECRET
    # The stored bytes open for no other host.
    AlertSettings.objects.update(webhook_origin="https://evil.example:443")
    with pytest.raises(vault.SecretUnreadable):
        AlertSettings.objects.get().webhook_secret.open()


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"webhook_url": "http://10.0.0.1/hook"}, "webhook_url"),
        ({"webhook_url": "http://169.254.169.254/"}, "webhook_url"),
        ({"webhook_url": "file:///etc/passwd"}, "webhook_url"),
        ({"webhook_url": "https://user:pass@hooks.example.com/"}, "webhook_url"),
        ({"webhook_url": "https://hooks.example.com/é"}, "webhook_url"),
        ({"webhook_url": "https://hooks.example.com/x", "webhook_secret": ""}, "webhook_secret"),
        ({"webhook_secret": "too short"}, "webhook_secret"),
        ({"webhook_secret": "é" * 20}, "webhook_secret"),
        ({"webhook_url": ""}, "webhook_url"),
        ({"failures": 0}, "failures"),
        ({"failures": 11}, "failures"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_changed(alice, fields, name):
    values = {
        "failures": 2,
        "by_mail": True,
        "webhook_url": "https://hooks.example.com/x",
        "webhook_secret": SECRET,
    }
    with pytest.raises(alerts.ValidationError) as refused:
        alerts.update(alice, **(values | fields))
    assert list(refused.value.error_dict) == [name]
    assert not AlertSettings.objects.filter(webhook_origin__gt="").exists()
    assert not AuditEvent.objects.filter(action__startswith="alerts").exists()


def test_changes_are_audited_and_without_the_row_there_is_no_change(alice, monkeypatch):
    alerts.update(
        alice,
        failures=2,
        by_mail=True,
        webhook_url="https://hooks.example.com/x",
        webhook_secret=SECRET,
    )
    alerts.update(alice, failures=2, by_mail=True, remove_webhook=True)
    actions = AuditEvent.objects.order_by("at").values_list("action", "details")
    assert list(actions) == [
        ("secret.store", {"purpose": "webhook", "host": "https://hooks.example.com:443"}),
        (
            "alerts.update",
            {"changed": ["failures", "webhook"], "host": "https://hooks.example.com:443"},
        ),
        ("secret.destroy", {"purpose": "webhook", "host": "https://hooks.example.com:443"}),
        (
            "alerts.update",
            {"changed": ["webhook"], "old_host": "https://hooks.example.com:443"},
        ),
    ]
    row = AlertSettings.objects.get()
    assert (row.webhook_url, row.webhook_secret, row.webhook_origin) == (None, None, "")

    def fail(*arguments, **named):
        raise RuntimeError

    monkeypatch.setattr(alerts, "record", fail)
    with contextlib.suppress(RuntimeError):
        alerts.update(alice, failures=5, by_mail=False)
    assert AlertSettings.objects.get().failures == 2


def test_settings_that_are_saved_keep_what_a_worker_wrote(alice):
    alerts.update(alice, failures=2, by_mail=True)
    after = timezone.now()
    AlertSettings.objects.update(mail_after=after, mail_error="smtp")
    alerts.update(alice, failures=3, by_mail=True)
    row = AlertSettings.objects.get()
    assert (row.failures, row.mail_after, row.mail_error) == (3, after, "smtp")


def test_an_alert_goes_when_it_is_old_unless_it_is_the_newest():
    connection, other = make_connection("local"), make_connection("other")
    long_ago = timezone.now() - dt.timedelta(days=91)
    Alert.objects.create(connection=connection, state="failing", at=long_ago)
    new = Alert.objects.create(connection=connection, state="recovered")
    only = Alert.objects.create(connection=other, state="failing", at=long_ago)
    Alert.objects.create(connection=other, state="hard_limit", at=long_ago)
    tasks.prune()
    assert set(Alert.objects.all()) == {new, only}


# -- its page --------------------------------------------------------------------------------------


@pytest.fixture
def page(client_for, alice):
    return client_for(alice)


def test_the_page_saves_and_shows_no_secret(page):
    html = page.get("/connections/alerts/").text
    assert "Mail is not set up" not in html
    assert "None yet." in html
    given = {
        "failures": "2",
        "by_mail": "on",
        "webhook_url": f"https://hooks.example.com{PATH}",
        "webhook_secret": SECRET,
    }
    answer = page.post("/connections/alerts/", given)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/connections/alerts/")
    row = AlertSettings.objects.get()
    assert (row.failures, row.by_mail) == (2, True)
    assert row.webhook_url.open().decode() == given["webhook_url"]
    html = page.get("/connections/alerts/").text
    assert "Stored, for https://hooks.example.com:443. Leave blank to keep it." in html
    assert PATH not in html
    assert SECRET not in html
    # Left blank it stays; ticked it goes.
    page.post("/connections/alerts/", {"failures": "2"})
    row = AlertSettings.objects.get()
    assert (row.by_mail, row.has_webhook) == (False, True)
    page.post("/connections/alerts/", {"failures": "2", "remove_webhook": "on"})
    assert not AlertSettings.objects.get().has_webhook


def test_with_htmx_the_browser_keeps_the_secret_that_was_typed(page):
    """And gets the form alone; a field that is refused itself is drawn anew, with its error."""
    given = {"failures": "0", "webhook_url": "http://10.0.0.1/x", "webhook_secret": SECRET}
    answer = page.post("/connections/alerts/", given, HTTP_HX_REQUEST="true")
    assert answer.status_code == 422
    assert answer.text.lstrip().startswith("<form")
    assert "Enter 1 or more." in answer.text
    assert SECRET not in answer.text
    assert set(re.findall(r'<input[^>]* name="(\w+)"[^>]* hx-preserve', answer.text)) == {
        "webhook_url",
        "webhook_secret",
    }
    answer = page.post("/connections/alerts/", given | {"failures": "2"}, HTTP_HX_REQUEST="true")
    assert answer.status_code == 422
    assert re.findall(r'<input[^>]* name="(\w+)"[^>]* hx-preserve', answer.text) == [
        "webhook_secret"
    ]
    answer = page.post("/connections/alerts/", {"failures": "2"}, HTTP_HX_REQUEST="true")
    assert answer.headers["HX-Redirect"] == "/connections/alerts/"


def test_a_refusal_keeps_what_was_typed_but_no_secret(page):
    given = {"failures": "7", "webhook_url": "http://10.0.0.1/x", "webhook_secret": SECRET}
    answer = page.post("/connections/alerts/", given)
    assert answer.status_code == 422
    assert 'value="7"' in answer.text
    assert "10.0.0.1/x" not in answer.text
    assert SECRET not in answer.text
    assert "Not saved yet" in answer.text


def test_an_admin_opts_out_and_in_again(page, alice, settings):
    assert f"You get these mails, at {alice.email}." in page.get("/connections/alerts/").text
    settings.MAIL_IS_SET_UP = False
    told = page.get("/connections/alerts/").text
    assert f"Once mail is set up you get these mails, at {alice.email}." in told
    for _press in range(2):
        assert page.post("/connections/alerts/me/", {"mail": "no"}).status_code == 303
    assert AlertOptOut.objects.get().user == alice
    assert "You get none of these mails." in page.get("/connections/alerts/").text
    page.post("/connections/alerts/me/", {"mail": "yes"})
    assert not AlertOptOut.objects.exists()
    actions = AuditEvent.objects.order_by("at").values_list("action", flat=True)
    assert list(actions) == ["alerts.opt_out", "alerts.opt_in"]


def test_a_test_goes_to_who_asks_and_to_the_webhook(page, alice, hook):
    make_user("dana@example.com", is_superuser=True)
    use(hook, alice, by_mail=True)
    page.post("/connections/alerts/test/")
    assert [message.to for message in mail.outbox] == [["alice@example.com"]]
    assert mail.outbox[0].subject == "Patchbay: a test"
    [told] = json.loads(hook.came[0][2])["alerts"]
    assert told["state"] == "test"
    html = page.get("/connections/alerts/").text
    assert "The webhook&#x27;s message was taken." in html
    hook.status = 401
    page.post("/connections/alerts/test/")
    assert "It answered with status 401." in page.get("/connections/alerts/").text


def test_the_page_costs_the_same_for_any_number_of_alerts(page, django_assert_num_queries):
    counts = []
    page.get("/connections/alerts/")
    for start, size in ((0, 2), (2, 20)):
        for n in range(start, start + size):
            Alert.objects.create(connection=make_connection(f"c{n}"), state="failing")
        with django_assert_num_queries(6) as counted:
            html = page.get("/connections/alerts/").text
        counts.append(len(counted))
        assert html.count("/health/") == start + size
    assert counts[0] == counts[1]
