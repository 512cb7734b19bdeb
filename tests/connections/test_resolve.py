"""Which connection a session uses, and why."""

import uuid

import pytest
from django.utils import timezone

from connections.models import Secret
from connections.resolve import Candidates, Choice, Rule, resolve
from connections.sentences import Reason
from tests.builders import (
    give_access,
    make_connection,
    make_member,
    make_user,
    make_workspace,
)
from workspaces.models import Role
from workspaces.permissions import Access

pytestmark = pytest.mark.django_db


@pytest.fixture
def workspace():
    return make_workspace()


def rules(resolution):
    return [(f.rule.value, f.connection and f.connection.slug, f.reason) for f in resolution.trace]


def test_without_any_connection_there_is_none(workspace):
    found = resolve(workspace)
    assert not found.ok
    assert found.refusal is Reason.NO_CONNECTION
    assert [f.rule for f in found.trace] == list(Rule)


def test_the_workspace_default_comes_before_the_global_one(workspace):
    make_connection("first")
    make_connection("everywhere", is_default=True)
    give_access(workspace, make_connection("ours"), is_default=True)
    found = resolve(workspace)
    assert (found.connection.slug, found.rule) == ("ours", Rule.WORKSPACE)
    assert found.model == "small"


def test_the_global_default_comes_before_the_first(workspace):
    make_connection("first")
    make_connection("everywhere", is_default=True)
    found = resolve(workspace)
    assert (found.connection.slug, found.rule) == ("everywhere", Rule.GLOBAL)


def test_the_first_in_the_list_is_the_last_resort(workspace):
    make_connection("second", position=7)
    make_connection("first", position=3)
    assert resolve(workspace).connection.slug == "first"
    assert resolve(workspace).rule is Rule.FIRST


def test_another_workspaces_default_does_not_count(workspace):
    make_connection("first")
    give_access(make_workspace("other"), make_connection("theirs"), is_default=True)
    assert resolve(workspace).connection.slug == "first"


@pytest.mark.parametrize(
    ("fields", "key", "reason"),
    [
        ({"enabled": False}, "k", Reason.DISABLED),
        ({}, None, Reason.INCOMPLETE),
        ({"access": "chosen"}, "k", Reason.NO_ACCESS),
        ({"provider_type": "vertex", "auth_type": "environment"}, None, Reason.ENVIRONMENT_OFF),
        ({"provider_type": "anthropic", "auth_type": "oauth"}, None, Reason.OAUTH_OFF),
        ({"models": [], "default_model": ""}, "k", Reason.NO_MODEL),
    ],
)
def test_an_unusable_candidate_is_passed_over_with_its_reason(workspace, fields, key, reason):
    make_connection("broken", key=key, is_default=True, **fields)
    make_connection("whole")
    found = resolve(workspace)
    assert found.connection.slug == "whole"
    assert ("global", "broken", reason) in rules(found)


def test_a_sealed_candidate_is_passed_over(workspace):
    broken = make_connection("broken", is_default=True)
    flip_a_bit(broken)
    found = resolve(workspace)
    assert not found.ok
    assert ("global", "broken", Reason.SEALED) in rules(found)


def flip_a_bit(connection):
    secret = connection.secrets.get()
    stored = bytearray(secret.value.stored)
    stored[-1] ^= 1
    from workspaces.fields import Stored

    Secret.objects.filter(pk=secret.pk).update(value=Stored(bytes(stored)))


def test_a_secret_entered_for_another_host_does_not_count(workspace):
    connection = make_connection("moved", is_default=True)
    type(connection).objects.update(base_url="https://evil.example/v1")
    assert ("global", "moved", Reason.INCOMPLETE) in rules(resolve(workspace))


def test_the_trace_says_why_in_words(workspace):
    give_access(workspace, make_connection("bedrock-eu", enabled=False), is_default=True)
    sentences = [f.sentence for f in resolve(workspace).trace]
    assert "Workspace default “Bedrock-Eu”: disabled." in sentences
    assert "There is no global default." in sentences


@pytest.mark.parametrize("locked_at", [None, timezone.now()])
def test_a_chosen_connection_is_final(workspace, locked_at):
    make_connection("everywhere", is_default=True)
    chosen = make_connection("chosen")
    found = resolve(workspace, Choice(chosen.id, locked_at))
    assert (found.connection, found.rule) == (chosen, Rule.SESSION)
    assert len(found.trace) == 1


@pytest.mark.parametrize("locked_at", [None, timezone.now()])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"enabled": False}, Reason.DISABLED),
        ({"deleted_at": timezone.now()}, Reason.DELETED),
        ({"access": "chosen"}, Reason.NO_ACCESS),
    ],
)
def test_a_chosen_connection_that_is_unusable_is_refused_not_replaced(
    workspace, locked_at, fields, reason
):
    make_connection("everywhere", is_default=True)
    chosen = make_connection("chosen", **fields)
    found = resolve(workspace, Choice(chosen.id, locked_at))
    assert found.connection is None
    assert found.rule is Rule.SESSION
    assert found.refusal is reason
    assert found.refusal_text(admin=False) != found.refusal_text(admin=True) or (
        reason is Reason.DELETED
    )


def test_a_choice_that_points_nowhere_is_refused(workspace):
    make_connection("everywhere", is_default=True)
    assert resolve(workspace, Choice(uuid.uuid4())).refusal is Reason.DELETED
    assert resolve(workspace, Choice(None, timezone.now())).refusal is Reason.DELETED


def test_the_refusal_of_a_paused_connection_has_the_admins_words(workspace):
    chosen = make_connection("chosen", enabled=False, paused_message="Back on Monday.")
    text = resolve(workspace, Choice(chosen.id)).refusal_text(admin=False)
    assert text == "This connection is paused. Back on Monday."


def test_a_narrower_list_of_models_moves_the_default(workspace):
    give_access(workspace, make_connection("ours"), is_default=True, allowed_models=["large"])
    assert resolve(workspace).model == "large"


def test_a_workspace_that_may_use_no_model_passes_it_over(workspace):
    give_access(workspace, make_connection("ours"), is_default=True, allowed_models=["gone"])
    assert ("workspace", "ours", Reason.NO_MODEL) in rules(resolve(workspace))


def test_members_see_no_rung_of_a_connection_they_have_no_access_to(workspace):
    make_connection("secret-project", access="chosen", is_default=True)
    make_connection("open")
    bob = make_user("bob@example.com")
    make_member(workspace, bob, Role.ADMIN)
    alice = make_user("alice@example.com", is_superuser=True)
    found = resolve(workspace)
    seen = found.trace_for(Access(workspace, bob, Role.ADMIN))
    assert "secret-project" not in [f.connection.slug for f in seen if f.connection]
    assert "Secret-Project" not in " ".join(f.sentence for f in seen)
    every = found.trace_for(Access(workspace, alice, Role.ADMIN))
    assert "secret-project" in [f.connection.slug for f in every if f.connection]


def test_chosen_access_is_given_by_a_row(workspace):
    give_access(workspace, make_connection("ours", access="chosen"))
    assert resolve(workspace).connection.slug == "ours"


@pytest.mark.parametrize("count", [1, 50])
def test_it_takes_three_queries_however_long_the_list(workspace, count, django_assert_num_queries):
    for number in range(count):
        make_connection(f"c{number}", enabled=number == count - 1)
    with django_assert_num_queries(3):
        assert resolve(workspace).ok
    among = Candidates.of(workspace)
    with django_assert_num_queries(0):
        assert resolve(workspace, among=among).ok
        assert [u.connection.slug for u in among.usable()] == [f"c{count - 1}"]


def test_the_result_can_be_printed_as_json(workspace):
    make_connection("ours", is_default=True)
    found = resolve(workspace).as_json()
    assert found["connection"] == "ours"
    assert found["rule"] == "global"
    assert found["trace"][-1]["taken"] is True


@pytest.mark.parametrize("state", ["usable", "paused", "no access", "deleted"])
def test_a_chosen_connection_is_looked_up_alone(workspace, state):
    """What is found is the same as among all of them; the rest of the list isn't loaded."""
    for n in range(3):
        make_connection(f"other-{n}")
    chosen = make_connection(
        "chosen",
        enabled=state != "paused",
        access="chosen" if state == "no access" else "all",
        deleted_at=timezone.now() if state == "deleted" else None,
    )
    choice = Choice(chosen.pk, timezone.now())
    among_all = resolve(workspace, choice, among=Candidates.of(workspace))
    assert resolve(workspace, choice).as_json() == among_all.as_json()
    assert among_all.ok == (state == "usable")
    alone = Candidates.of(workspace, only=chosen.pk).connections
    assert [one.slug for one in alone] == ([] if state == "deleted" else ["chosen"])
