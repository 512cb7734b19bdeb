"""Lists of models kept in step with the provider's, and those that are nobody's but ours."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from django.utils import timezone

from connections import actions, sync, tasks
from connections.models import Connection
from connections.providers.base import ListedModel
from tests.builders import make_connection
from tests.fakes import models as fake_models
from tests.fakes.server import FakeProviders
from workspaces.models import AuditEvent
from workspaces.runtime import get_runtime

pytestmark = pytest.mark.django_db(transaction=True)
NAMES = [model.name for model in fake_models.MODELS]


@pytest.fixture(autouse=True)
def around(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.EGRESS_ALLOW = "127.0.0.0/8,::1"
    monkeypatch.setattr(tasks.refresh_models, "apply_async", lambda **options: None)
    monkeypatch.setattr(tasks.validate_connection, "apply_async", lambda **options: None)
    yield
    get_runtime().stop(5)


@pytest.fixture
def synced(fakes: FakeProviders) -> Connection:
    return make_connection(
        "synced",
        key=fakes.good_key,
        base_url=fakes.openai,
        models=["echo", {"id": "gone"}],
        default_model="echo",
        models_synced=True,
        unknown_fields={sync.MODE: sync.SYNCED},
    )


def run(connection: Connection) -> Connection:
    get_runtime().submit(tasks.refresh(connection.pk)).result(20)
    return Connection.objects.get(pk=connection.pk)


# -- what stays ------------------------------------------------------------------------------------


def test_entries_that_stay_keep_their_place_and_all_their_settings():
    own = {"id": "b", "contextWindow": 5, "theirs": {"x": [1]}}
    merged = sync.merge(
        ["c", own, "z"], [ListedModel("a"), ListedModel("b", "B", 9, True), ListedModel("c")], "c"
    )
    assert merged == sync.Merged(["c", own, "a"], 1, 1)


def test_what_the_provider_says_of_a_new_model_is_taken_and_nothing_else():
    listed = [ListedModel("a"), ListedModel("b", "B", 9, False), ListedModel("c", "c")]
    assert sync.merge([], listed, "").models == [
        "a",
        {"id": "b", "name": "B", "contextWindow": 9, "supportsImages": False},
        "c",
    ]


def test_a_default_model_that_vanished_is_kept():
    merged = sync.merge(["old", "other"], [ListedModel("new")], "old")
    assert merged == sync.Merged(["old", "new"], 1, 1, "old")


def test_ids_that_no_list_may_hold_are_left_out():
    listed = [ListedModel(name) for name in ("", "a" * 300, "a\nb", "ok", "ok")]
    assert sync.merge([], listed, "").models == ["ok"]


# -- refreshing ------------------------------------------------------------------------------------


def test_the_providers_list_is_taken(synced):
    row = run(synced)
    assert row.model_ids[0] == "echo"
    assert sorted(row.model_ids) == sorted(NAMES)
    assert (row.sync_error, row.syncing_until) == ("", None)
    assert row.synced_at is not None
    later = row.sync_due_at - timezone.now()
    assert dt.timedelta(hours=19) < later < dt.timedelta(hours=29)
    event = AuditEvent.objects.get(action="connection.models")
    assert event.details == {"added": len(NAMES) - 1, "removed": 1, "models": len(NAMES)}
    # The same list once more is no change.
    Connection.objects.update(sync_due_at=timezone.now())
    run(synced)
    assert AuditEvent.objects.filter(action="connection.models").count() == 1


def test_what_was_validated_stays_validated(synced):
    Connection.objects.update(health="valid", health_at=timezone.now())
    assert run(synced).health == "valid"


def test_a_list_made_by_hand_is_never_touched(synced, fakes):
    Connection.objects.update(models_synced=False)
    fakes.reset()
    row = run(synced)
    assert row.models == ["echo", {"id": "gone"}]
    assert tasks.refreshes_due() == []
    assert fakes.requests() == []


def test_a_list_made_ones_own_while_it_was_fetched_is_not_touched(synced, monkeypatch, alice):
    original = tasks._end_refresh

    def late(connection: Connection, *rest: Any) -> None:
        actions.update(alice, synced, {}, models_synced=False)
        original(connection, *rest)

    monkeypatch.setattr(tasks, "_end_refresh", late)
    assert run(synced).models == ["echo", {"id": "gone"}]


def test_settings_edited_meanwhile_are_not_given_the_old_ones_list(synced, monkeypatch, alice):
    original = tasks._end_refresh

    def late(connection: Connection, *rest: Any) -> None:
        actions.update(alice, synced, {"models": ["echo", "mine"]})
        original(connection, *rest)

    monkeypatch.setattr(tasks, "_end_refresh", late)
    assert run(synced).model_ids == ["echo", "mine"]


@pytest.mark.parametrize(
    ("changes", "key", "kind"),
    [
        ({}, "sk-wrong", "auth"),
        ({"base_url": "https://llm.example.com/v1"}, None, "incomplete"),
        ({"base_url": "http://127.0.0.1:9/v1"}, "sk-1", "connect"),
    ],
)
def test_a_failure_is_kept_as_its_sentence_and_the_list_stays(
    fakes, alice, client_for, changes, key, kind
):
    values = {"base_url": fakes.openai, "models": ["echo"], "default_model": "echo", **changes}
    connection = make_connection("failing", key=key, models_synced=True, **values)
    row = run(connection)
    assert (row.sync_error, row.models) == (kind, ["echo"])
    assert row.sync_due_at - timezone.now() < dt.timedelta(hours=4)
    page = client_for(alice).get("/connections/failing/").content.decode()
    assert "The list was not fetched" in page
    assert "The list stays as it was." in page


def test_a_vanished_default_is_said_so_until_another_is_chosen(synced, alice, client_for):
    Connection.objects.update(default_model="gone")
    row = run(synced)
    assert "gone" in row.model_ids
    client = client_for(alice)
    assert "no longer listed" in client.get("/connections/synced/").content.decode()
    actions.update(alice, row, {"default_model": "echo"})
    assert "no longer listed" not in client.get("/connections/synced/").content.decode()


def test_of_two_refreshes_at_once_one_runs(synced, fakes):
    fakes.reset()
    futures = [get_runtime().submit(tasks.refresh(synced.pk)) for _ in range(4)]
    for future in futures:
        future.result(20)
    assert len(fakes.requests()) == 1


# -- the page --------------------------------------------------------------------------------------


def test_the_button_asks_once_and_is_audited(synced, alice, client_for):
    client = client_for(alice)
    assert "Refresh models" in client.get("/connections/synced/").content.decode()
    for _ in range(2):
        assert client.post("/connections/synced/models/").status_code == 303
    assert AuditEvent.objects.filter(action="connection.refresh_models").count() == 1
    assert tasks.refreshes_due() == [synced.pk]
    page = client.get("/connections/synced/", headers={"HX-Request": "true", "HX-Target": "models"})
    assert "Being fetched" in page.content.decode()
    assert "<html" not in page.content.decode()


def test_a_list_of_ones_own_has_no_button(alice, client_for):
    make_connection("mine")
    client = client_for(alice)
    assert "Refresh models" not in client.get("/connections/mine/").content.decode()
    assert client.post("/connections/mine/models/").status_code == 409


def test_members_may_not(synced, bob, client_for):
    assert client_for(bob).post("/connections/synced/models/").status_code == 403


def test_the_form_switches_it_on_and_off(alice, client_for):
    mine = make_connection("mine", unknown_fields={"theirs": 1})
    client = client_for(alice)
    assert client.post("/connections/mine/edit/", {"models_synced": "true"}).status_code == 303
    mine.refresh_from_db()
    assert mine.models_synced
    assert mine.unknown_fields == {"theirs": 1, sync.MODE: sync.SYNCED}
    assert mine.is_syncing  # asked for at once
    event = AuditEvent.objects.filter(action="connection.update").latest("at")
    assert event.details["changed"] == ["models_synced"]
    client.post("/connections/mine/edit/", {"name": "Mine"})  # left out: as it is
    mine.refresh_from_db()
    assert mine.models_synced
    client.post("/connections/mine/edit/", {"models_synced": "false"})
    mine.refresh_from_db()
    assert (mine.models_synced, mine.unknown_fields) == (False, {"theirs": 1})


def test_the_mode_of_a_file_comes_in_and_goes_out(alice):
    for number, mode in enumerate((sync.SYNCED, "userDefined3Tier", None)):
        unknown = {} if mode is None else {sync.MODE: mode}
        data = {
            "name": f"n{number}",
            "provider_type": "openai_compat",
            "auth_type": "none",
            "base_url": "https://llm.example.com/v1",
            "models": ["m"],
            "default_model": "m",
        }
        made = actions.create(alice, data, unknown_fields=unknown, resolve=False)
        assert made.models_synced is (mode == sync.SYNCED)
        assert made.unknown_fields.get(sync.MODE) == mode
        actions.update(alice, made, {}, unknown_fields={sync.MODE: sync.SYNCED}, resolve=False)
        made.refresh_from_db()
        assert made.models_synced
