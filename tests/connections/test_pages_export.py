"""The page that gives all connections as a file."""

from __future__ import annotations

import json

import pytest

from tests.builders import KEY, make_connection
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db


def test_the_file_holds_every_connection_and_no_secret(alice, client_for):
    make_connection("one")
    make_connection("two")
    answer = client_for(alice).post("/connections/export/")
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert [row["slug"] for row in json.loads(answer.content)["llmConnections"]] == ["one", "two"]
    assert KEY not in answer.content.decode()
    assert AuditEvent.objects.filter(action="connection.export", actor=alice).count() == 1


def test_looking_at_the_page_takes_nothing(alice, client_for):
    make_connection("one")
    answer = client_for(alice).get("/connections/export/")
    assert answer.status_code == 200
    assert not AuditEvent.objects.exists()


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_member_may_not(bob, client_for, method):
    assert getattr(client_for(bob), method)("/connections/export/").status_code == 403
