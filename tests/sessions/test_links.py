"""What connections learn from sessions, through the registry."""

import io
import json

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from connections import deleting
from connections.registry import Dependents, choice_of, dependents_of
from connections.resolve import Choice
from sessions.models import ChatSession
from tests.builders import make_connection, make_workspace

pytestmark = pytest.mark.django_db


def test_sessions_are_counted_by_connection(workspace, bob):
    used, unused = make_connection("used"), make_connection("unused")
    for _ in range(2):
        ChatSession.objects.create(workspace=workspace, owner=bob, connection=used)
    ChatSession.objects.create(workspace=workspace, owner=bob)
    assert dependents_of([used.pk, unused.pk]) == {used.pk: Dependents(sessions=2)}


def test_a_sessions_choice_is_found_in_its_own_workspace_only(workspace, bob):
    made = make_connection()
    now = timezone.now()
    chat = ChatSession.objects.create(
        workspace=workspace, owner=bob, connection=made, locked_at=now
    )
    assert choice_of(workspace, chat.pk) == Choice(made.pk, now)
    assert choice_of(make_workspace("other"), chat.pk) is None


def test_the_command_names_a_locked_sessions_connection_or_why_not(alice, workspace, bob):
    make_connection("default", is_default=True)
    locked = make_connection("locked")
    chat = ChatSession.objects.create(
        workspace=workspace, owner=bob, connection=locked, locked_at=timezone.now()
    )
    arguments = ["resolve_connection", "--workspace", workspace.slug, "--session", str(chat.pk)]
    out = io.StringIO()
    call_command(*arguments, "--json", stdout=out)
    assert json.loads(out.getvalue())["connection"] == "locked"
    assert deleting.delete(alice, locked).dependents.sessions == 1
    out = io.StringIO()
    with pytest.raises(CommandError, match="deleted"):
        call_command(*arguments, "--json", stdout=out)
    assert json.loads(out.getvalue())["refusal"] == "deleted"
