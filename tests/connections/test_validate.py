"""A probe from asked to written down: once, with a lease, and never over a newer edit."""

import datetime as dt
import io
import json
import threading
import time

import pytest
import redis.exceptions
from django.core.management import CommandError, call_command
from django.utils import timezone
from kombu.exceptions import OperationalError

from connections import tasks
from connections.actions import create, update
from connections.choices import Outcome, Rung, Status
from connections.ladder import RungResult
from connections.models import Connection, ProbeResult
from connections.registry import _finders, find_choices_with
from connections.resolve import Choice
from connections.tasks import (
    due,
    probe,
    record_turn_outcome,
    request_validation,
    validate_connection,
    validate_due,
)
from tests.builders import give_access, make_connection
from workspaces.models import AuditEvent
from workspaces.runtime import get_runtime

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def loopback_is_allowed(settings):
    settings.EGRESS_ALLOW = "127.0.0.0/8,::1"


@pytest.fixture(autouse=True)
def loop():
    """The runtime as a worker has it; its threads let go of the database afterwards."""
    yield
    get_runtime().stop(5)


@pytest.fixture
def doorbell(monkeypatch):
    """What would have been sent to the workers."""
    rung = []

    def apply_async(args, **options):
        rung.append((args[0], options))

    monkeypatch.setattr(validate_connection, "apply_async", apply_async)
    return rung


def fake_connection(fakes, slug="fake", model="echo", **fields):
    values = {"base_url": fakes.openai, "key": fakes.good_key, "models": [], "default_model": model}
    return make_connection(slug, **(values | fields))


def run(connection, **options):
    return get_runtime().submit(probe(connection.pk, **options)).result(30)


@pytest.mark.parametrize(("trigger", "told"), [("button", True), ("schedule", False)])
def test_the_rungs_are_told_as_they_are_climbed_where_somebody_waits(
    alice, fakes, doorbell, monkeypatch, trigger, told
):
    made = fake_connection(fakes)
    if told:
        request_validation([made], alice, trigger)
    seen = []
    tell = tasks._tell

    def watch(result, results):
        tell(result, results)
        seen.append(ProbeResult.objects.get(pk=result.pk))

    monkeypatch.setattr(tasks, "_tell", watch)
    run(made)
    if not told:
        assert seen == []
        return
    assert [len(one.rungs) for one in seen] == [1, 2, 3, 4]
    assert all(one.finished_at is None for one in seen)
    assert [rung["rung"] for rung in seen[1].rungs] == ["config", "network"]
    assert len(ProbeResult.objects.get().rungs) == 6


def test_asking_shows_checking_rings_and_is_audited(alice, fakes, doorbell):
    made = fake_connection(fakes)
    assert request_validation([made], alice) == [made]
    made.refresh_from_db()
    assert made.status == Status.CHECKING
    assert [args for args, _options in doorbell] == [str(made.pk)]
    assert doorbell[0][1]["retry"] is False
    assert AuditEvent.objects.get().action == "connection.validate"
    row = ProbeResult.objects.get()
    assert (row.finished_at, row.trigger, row.requested_by) == (None, "button", alice)


def test_a_double_click_is_one_probe(alice, fakes, doorbell):
    made = fake_connection(fakes)
    request_validation([made], alice)
    assert request_validation([made], alice) == []
    assert len(doorbell) == 1
    assert ProbeResult.objects.count() == 1


def test_checking_ends_by_itself_when_no_worker_comes(alice, fakes, doorbell):
    made = fake_connection(fakes)
    request_validation([made], alice)
    Connection.objects.update(checking_until=timezone.now() - dt.timedelta(seconds=1))
    made.refresh_from_db()
    assert made.status == Status.UNCHECKED
    assert request_validation([made], alice) == [made]


def test_a_probe_that_was_asked_for_climbs_to_the_top_and_is_written_down(alice, fakes, doorbell):
    made = fake_connection(fakes)
    request_validation([made], alice)
    result = run(made)
    made.refresh_from_db()
    assert (made.status, made.checking_until) == (Status.VALID, None)
    assert made.next_check_at > timezone.now() + dt.timedelta(hours=4)
    stored = ProbeResult.objects.get()
    assert stored.pk == result.pk
    assert (stored.passed, stored.requested_by, stored.error_kind) == (True, alice, "")
    assert [rung["outcome"] for rung in stored.rungs] == ["passed"] * 6
    assert stored.latency_ms is not None


def test_a_failure_is_written_down_with_its_kind(alice, fakes, doorbell):
    made = fake_connection(fakes, key="sk-wrong-but-long-enough-0000")
    request_validation([made], alice)
    run(made)
    made.refresh_from_db()
    assert (made.status, made.health_error) == (Status.FAILED, "auth")
    stored = ProbeResult.objects.get()
    assert stored.passed is False
    assert "sk-wrong-but-long-enough-0000" not in json.dumps(stored.rungs)


def test_nothing_is_taken_twice(alice, fakes, doorbell):
    made = fake_connection(fakes)
    request_validation([made], alice)
    fakes.reset()
    runtime = get_runtime()
    both = [runtime.submit(probe(made.pk)) for _ in range(5)]
    results = [future.result(30) for future in both]
    assert len([result for result in results if result]) == 1
    assert len([r for r in fakes.requests() if r["method"] == "POST"]) == 1
    assert run(made) is None


def test_a_connection_that_is_gone_is_no_error(alice, fakes, doorbell):
    made = fake_connection(fakes)
    request_validation([made], alice)
    Connection.objects.update(deleted_at=timezone.now())
    assert run(made) is None


def test_a_result_of_what_was_edited_meanwhile_is_not_taken(alice, fakes, doorbell):
    made = fake_connection(fakes, model="slow-1s")
    request_validation([made], alice)
    future = get_runtime().submit(probe(made.pk))
    fakes.wait_for(lambda: fakes.requests(model="slow-1s"))
    made.refresh_from_db()
    update(alice, made, {"default_model": "err-401"})
    future.result(30)
    made.refresh_from_db()
    assert made.status == Status.UNCHECKED
    assert made.health_at is None


def test_an_edit_while_checking_can_be_validated_at_once(alice, fakes, doorbell):
    made = fake_connection(fakes, model="slow-1s")
    request_validation([made], alice)
    future = get_runtime().submit(probe(made.pk))
    fakes.wait_for(lambda: fakes.requests(model="slow-1s"))
    made.refresh_from_db()
    update(alice, made, {"default_model": "err-401"})
    assert request_validation([made], alice, "save") == [made]
    run(made)
    future.result(30)
    made.refresh_from_db()
    assert made.status == Status.FAILED


def test_a_paused_connection_can_be_validated_by_hand_but_not_by_schedule(alice, fakes, doorbell):
    made = fake_connection(fakes, enabled=False)
    assert due() == []
    request_validation([made], alice)
    assert due() == [made.pk]
    run(made)
    made.refresh_from_db()
    assert made.health == Status.VALID


# -- when the broker is down -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [OperationalError("x"), redis.exceptions.TimeoutError("x"), ConnectionError("x")]
)
def test_a_broker_that_is_down_neither_breaks_the_save_nor_costs_a_try_each(
    alice, fakes, monkeypatch, fault
):
    tries = []

    def apply_async(args, **options):
        tries.append(args)
        raise fault

    monkeypatch.setattr(validate_connection, "apply_async", apply_async)
    made = [fake_connection(fakes, f"c{n}") for n in range(3)]
    assert len(request_validation(made, alice)) == 3
    assert len(tries) == 1
    assert set(due()) == {c.pk for c in made}


def test_the_sweep_takes_what_was_asked_for_in_vain(alice, fakes, doorbell):
    made = fake_connection(fakes)
    request_validation([made], alice)
    validate_due()
    fakes.wait_for(lambda: ProbeResult.objects.exclude(finished_at=None).exists())
    made.refresh_from_db()
    assert made.health == Status.VALID
    assert ProbeResult.objects.get().trigger == "button"


def test_a_probe_whose_worker_died_is_due_again(alice, fakes, doorbell):
    made = fake_connection(fakes)
    request_validation([made], alice)
    assert tasks._take(made.pk) is not None
    assert due() == []
    later = timezone.now() + tasks.RUNNING_FOR + dt.timedelta(seconds=1)
    assert due(later) == [made.pk]


# -- the schedule ----------------------------------------------------------------------------------


def test_the_schedule_asks_for_no_answer_and_keeps_what_was_proven(fakes):
    made = fake_connection(fakes, health=Status.VALID, health_at=timezone.now())
    before = made.health_at
    fakes.reset()
    result = run(made)
    assert result.trigger == "schedule"
    assert not [r for r in fakes.requests() if r["method"] == "POST"]
    made.refresh_from_db()
    assert (made.health, made.health_at) == (Status.VALID, before)


def test_the_schedule_proves_a_key_where_a_free_call_does(fakes):
    made = fake_connection(
        fakes, provider_type="anthropic", auth_type="api_key", base_url=fakes.anthropic
    )
    run(made)
    made.refresh_from_db()
    assert made.health == Status.VALID


def test_the_schedule_turns_a_broken_connection_red(fakes):
    made = fake_connection(fakes, base_url="http://127.0.0.1:9/v1", health=Status.VALID)
    run(made)
    made.refresh_from_db()
    assert (made.health, made.health_error) == (Status.FAILED, "connect")


def test_what_passed_by_itself_is_no_longer_red_but_not_green_either(fakes):
    made = fake_connection(fakes, health=Status.FAILED, health_error="connect")
    run(made)
    made.refresh_from_db()
    assert made.health == Status.UNCHECKED


def test_a_rejected_key_stays_red_until_something_proves_it(fakes):
    made = fake_connection(fakes, health=Status.FAILED, health_error="auth")
    run(made)
    made.refresh_from_db()
    assert made.health == Status.FAILED


def test_what_is_asked_for_during_a_scheduled_check_is_not_lost(alice, fakes, doorbell):
    made = fake_connection(fakes)
    connection, result = tasks._take(made.pk)
    assert request_validation([made], alice) == [made]
    tasks._write_down(connection, result, [RungResult(rung, Outcome.PASSED) for rung in Rung])
    assert due() == [made.pk]
    made.refresh_from_db()
    assert made.status == Status.CHECKING
    assert made.health == Status.UNCHECKED


def test_the_history_is_pruned(fakes):
    made = fake_connection(fakes)
    now = timezone.now()
    for days in (1, 91):
        ProbeResult.objects.create(connection=made, started_at=now - dt.timedelta(days=days))
    tasks.prune()
    assert ProbeResult.objects.count() == 1


def test_a_new_connection_is_due_by_itself(alice, fakes):
    data = {
        "name": "New",
        "provider_type": "openai_compat",
        "auth_type": "none",
        "base_url": fakes.openai_nokey,
        "default_model": "echo",
    }
    made = create(alice, data)
    assert due() == [made.pk]


# -- what turns tell -------------------------------------------------------------------------------


def test_a_rejected_key_in_a_chat_turns_the_connection_red(fakes):
    made = fake_connection(fakes, health=Status.VALID)
    record_turn_outcome(made.pk, "overloaded")
    made.refresh_from_db()
    assert made.health == Status.VALID
    record_turn_outcome(made.pk, "auth")
    made.refresh_from_db()
    assert (made.health, made.health_error) == (Status.FAILED, "auth")


def test_a_turn_on_older_settings_tells_nothing_of_the_new(fakes):
    made = fake_connection(fakes, health=Status.VALID, revision=3)
    record_turn_outcome(made.pk, "auth", revision=2)
    made.refresh_from_db()
    assert made.health == Status.VALID


def test_successes_are_written_once_a_minute(fakes):
    made = fake_connection(fakes)
    record_turn_outcome(made.pk, None)
    made.refresh_from_db()
    first = made.last_used_at
    assert (made.health, first is not None) == (Status.VALID, True)
    record_turn_outcome(made.pk, None)
    made.refresh_from_db()
    assert made.last_used_at == first
    Connection.objects.update(last_used_at=timezone.now() - dt.timedelta(minutes=2))
    record_turn_outcome(made.pk, None)
    made.refresh_from_db()
    assert made.last_used_at >= first


# -- many ------------------------------------------------------------------------------------------


def test_many_probes_run_side_by_side_and_within_their_bound(alice, fakes, doorbell, settings):
    settings.PROBES_PER_WORKER = 5
    made = [fake_connection(fakes, f"c{n}", model="slow-0s") for n in range(20)]
    running, most = 0, 0
    lock = threading.Lock()
    climb = tasks.climb

    async def counted(*arguments, **named):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return await climb(*arguments, **named)
        finally:
            with lock:
                running -= 1

    tasks.climb = counted
    try:
        request_validation(made, alice)
        started = time.monotonic()
        futures = [get_runtime().submit(probe(c.pk)) for c in made]
        assert all(future.result(60).passed for future in futures)
        assert time.monotonic() - started < 60
    finally:
        tasks.climb = climb
    assert 1 < most <= 5


# -- commands --------------------------------------------------------------------------------------


def test_the_command_validates_in_process_and_exits_with_one_on_a_failure(fakes):
    fake_connection(fakes, "good")
    out = io.StringIO()
    call_command("validate_connections", "good", "--json", stdout=out)
    found = json.loads(out.getvalue())
    assert [(one["slug"], one["passed"]) for one in found] == [("good", True)]
    fake_connection(fakes, "bad", model="err-500")
    out = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("validate_connections", stdout=out)
    assert caught.value.returncode == 1
    assert "bad" in str(caught.value)
    assert "good: valid" in out.getvalue()
    assert "The provider had a fault of its own." in out.getvalue()
    with pytest.raises(CommandError, match="no such connection"):
        call_command("validate_connections", "unheard-of")


def test_the_command_tells_which_connection_and_why(fakes, workspace):
    with pytest.raises(CommandError) as caught:
        call_command("resolve_connection", "--workspace", workspace.slug, stdout=io.StringIO())
    assert caught.value.returncode == 1
    chosen = fake_connection(fakes, "chosen")
    give_access(workspace, fake_connection(fakes, "ours"), is_default=True)
    out = io.StringIO()
    call_command("resolve_connection", "--workspace", workspace.slug, "--json", stdout=out)
    assert json.loads(out.getvalue())["connection"] == "ours"
    session_id = chosen.pk  # any id

    def find(asked_workspace, asked_id):
        return Choice(chosen.pk) if asked_id == session_id else None

    find_choices_with(find)
    try:
        out = io.StringIO()
        call_command(
            "resolve_connection",
            f"--workspace={workspace.slug}",
            f"--session={session_id}",
            stdout=out,
        )
        assert "chosen (Session's connection, echo)" in out.getvalue()
        with pytest.raises(CommandError, match="no such session"):
            call_command(
                "resolve_connection", f"--workspace={workspace.slug}", f"--session={workspace.pk}"
            )
    finally:
        _finders.remove(find)
    with pytest.raises(CommandError, match="no such workspace"):
        call_command("resolve_connection", "--workspace=nope")
