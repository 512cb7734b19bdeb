"""The audit's pages: who sees which rows, filters, pages without an end, exports."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import re
from pathlib import Path

import pytest
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from tests.builders import make_member, make_user, make_workspace
from workspaces import audit, audit_views
from workspaces.audit_words import WORDS
from workspaces.models import AuditEvent, Role

pytestmark = pytest.mark.django_db


@pytest.fixture
def space(db):
    return make_workspace("support")


@pytest.fixture
def wadmin(space):
    user = make_user("wadmin@example.com")
    make_member(space, user, Role.ADMIN)
    return user


def write(actor, target, action="workspace.update", **more):
    with transaction.atomic():
        return audit.record(actor, action, target, **more)


def shown(page):
    return re.findall(r'<tr id="event-([0-9a-f-]+)"', page.content.decode())


def test_an_admin_sees_the_rows_of_the_workspace_alone(client, space, wadmin):
    other = make_workspace("sales")
    here = write(wadmin, space, workspace_id=space.pk, changed=["name"])
    write(wadmin, other, workspace_id=other.pk)
    client.force_login(wadmin)
    page = client.get("/w/support/audit/")
    assert str(here.pk) in shown(page)
    assert AuditEvent.objects.exclude(workspace_id=space.pk).exists()
    rows = AuditEvent.objects.filter(pk__in=shown(page))
    assert {row.workspace_id for row in rows} == {space.pk}
    assert "changed the workspace" in page.content.decode()
    assert 'href="/w/support/audit/"' in page.content.decode()


def test_only_admins_have_the_line_in_the_rail(client, space):
    bob = make_user("bob@example.com")
    make_member(space, bob)
    client.force_login(bob)
    assert b"/w/support/audit/" not in client.get("/w/support/").content


def test_filters_work_together(client, space, wadmin):
    client.force_login(wadmin)
    AuditEvent.objects.all().delete()
    old = write(wadmin, space, workspace_id=space.pk, label="Old name")
    AuditEvent.objects.filter(pk=old.pk).update(at=timezone.now() - dt.timedelta(days=10))
    new = write(wadmin, space, "workspace.models", workspace_id=space.pk, label="New name")
    today = timezone.now().date().isoformat()
    for query, expected in {
        "q=old": [old],
        "q=NAME": [new, old],
        "q=wadmin%40": [new, old],
        "action=workspace.models": [new],
        f"since={today}": [new],
        f"until={dt.date.fromisoformat(today) - dt.timedelta(days=1)}": [old],
        f"since={today}&q=old": [],
        "q=%25%25%25%25": [],
    }.items():
        page = client.get(f"/w/support/audit/?{query}")
        assert shown(page) == [str(event.pk) for event in expected], query


@pytest.mark.parametrize("query", ["since=soon", "action=nothing", "until=9999-99-99"])
def test_a_filter_that_makes_no_sense_says_so(client, space, wadmin, query):
    client.force_login(wadmin)
    page = client.get(f"/w/support/audit/?{query}")
    assert page.status_code == 422
    assert "errorlist" in page.content.decode()


def test_the_export_takes_the_filter_along_whatever_else_the_address_says(client, space, wadmin):
    with transaction.atomic():
        audit.record(wadmin, "workspace.update", space, workspace_id=space.pk)
    client.force_login(wadmin)
    page = client.get(f"/w/{space.slug}/audit/", {"action": "workspace.update", "items": "abc"})
    assert page.status_code == 200
    assert '<input type="hidden" name="action" value="workspace.update">' in page.text


def test_every_row_is_reached_once_whatever_is_written_meanwhile(
    client, space, wadmin, monkeypatch, django_assert_max_num_queries
):
    client.force_login(wadmin)
    AuditEvent.objects.all().delete()
    monkeypatch.setattr(audit_views, "PAGE", 7)
    made = [str(write(wadmin, space, workspace_id=space.pk).pk) for _ in range(30)]
    AuditEvent.objects.update(at=timezone.now())  # all at the same moment
    seen, address = [], "/w/support/audit/"
    while address:
        with django_assert_max_num_queries(8):
            page = client.get(address)
        seen += shown(page)
        write(wadmin, space, workspace_id=space.pk)
        found = re.search(r'rel="next" href="([^"]+)"', page.content.decode())
        address = found and "/w/support/audit/" + found[1].replace("&amp;", "&")
    assert sorted(seen) == sorted(made)


def test_csv_holds_no_formula_and_json_lines_hold_everything(client, space, wadmin):
    client.force_login(wadmin)
    AuditEvent.objects.all().delete()
    for label in ("=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "plain"):
        write(wadmin, space, workspace_id=space.pk, label=label, odd="=cmd")
    answer = client.post("/w/support/audit/export/", {"format": "csv"})
    assert answer.headers["content-disposition"].startswith('attachment; filename="audit-support-')
    rows = list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))
    # the export itself is the newest row
    assert [row["action"] for row in rows][:1] == ["audit.export"]
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert {row["target"] for row in rows} >= {"'=1+1", "'@SUM(A1)", "plain"}
    answer = client.post("/w/support/audit/export/", {"format": "jsonl", "q": "plain"})
    (row,) = [json.loads(line) for line in answer.content.decode().splitlines()]
    assert (row["target"], row["details"]) == ("plain", {"odd": "=cmd"})


def test_more_rows_than_a_file_takes_are_refused(client, space, wadmin, monkeypatch):
    client.force_login(wadmin)
    monkeypatch.setattr(audit_views, "MOST_EXPORTED", 2)
    for _ in range(3):
        write(wadmin, space, workspace_id=space.pk)
    answer = client.post("/w/support/audit/export/", {"format": "csv"})
    assert answer.status_code == 422
    assert "Narrow the dates" in answer.content.decode()
    assert not AuditEvent.objects.filter(action="audit.export").exists()


def test_every_action_of_the_product_has_its_words():
    quoted = re.compile(r'"((?:[a-z]+_?)+\.[a-z_]+)"')
    used = set()
    for folder in ("workspaces", "connections", "sessions", "config"):
        for path in (Path(settings.BASE_DIR) / folder).rglob("*.py"):
            if "migrations" not in path.parts and path.name != "audit_words.py":
                for call in re.finditer(r"record\((.*?)\n?\s*\)\n", path.read_text(), re.S):
                    used |= set(quoted.findall(call[1]))
    nouns = {"user", "workspace", "membership"}
    used |= {f"{noun}.{verb}" for noun in nouns for verb in ("create", "update", "delete")}
    missing = used - WORDS.keys() - {name for name in used if name.endswith(".py")}
    assert len(used) > 40
    assert missing == set()
