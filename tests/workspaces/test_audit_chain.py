"""The audit's chain: numbered and sealed in order, and what is done to it behind its back shows."""

from __future__ import annotations

import datetime as dt
import json
import threading

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.utils import timezone

from tests.builders import make_user
from workspaces import audit, audit_chain
from workspaces.models import AuditEvent, AuditHead

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def bob():
    return make_user("bob@example.com")


def write(bob, count=5, **fields):
    with transaction.atomic():
        for number in range(count):
            audit.record(bob, "user.password", bob, n=number, words="grüße", **fields)


def findings():
    return [(one.kind, one.number) for one in audit_chain.verify()]


def test_rows_are_numbered_and_sealed_in_their_order(bob):
    write(bob)
    assert audit_chain.seal_pending() == 5
    write(bob, 2)
    assert audit_chain.seal_pending() == 2
    assert audit_chain.seal_pending() == 0
    numbers = AuditEvent.objects.order_by("at").values_list("number", flat=True)
    assert list(numbers) == [1, 2, 3, 4, 5, 6, 7]
    assert findings() == []
    assert audit_chain.head()[0] == 7


def test_many_sealers_at_once_make_one_chain(bob):
    write(bob, 40)
    barrier = threading.Barrier(4)

    def seal():
        barrier.wait()
        try:
            audit_chain.seal_pending()
        finally:
            connection.close()

    threads = [threading.Thread(target=seal) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = sorted(AuditEvent.objects.values_list("number", flat=True))
    assert numbers == list(range(1, 41))
    assert findings() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actor_label", "alice@example.com"),
        ("action", "user.sign_in"),
        ("target_label", "x"),
        ("details", {"n": 3, "words": "other"}),
        ("at", timezone.now() - dt.timedelta(days=1)),
        ("seal", "0" * 64),
    ],
)
def test_a_changed_row_is_found(bob, field, value):
    write(bob)
    audit_chain.seal_pending()
    AuditEvent.objects.filter(number=3).update(**{field: value})
    found = findings()
    assert ("changed", 3) in found
    assert set(found) <= {("changed", 3), ("changed", 4)}


def test_missing_rows_are_found_in_the_middle_and_at_the_end(bob):
    write(bob)
    audit_chain.seal_pending()
    AuditEvent.objects.filter(number=2).delete()
    assert ("missing", 2) in findings()
    AuditEvent.objects.filter(number=5).delete()
    assert ("missing", 5) in findings()
    with pytest.raises(CommandError):
        call_command("verify_audit")


def test_two_rows_that_changed_places_are_found(bob):
    write(bob)
    audit_chain.seal_pending()
    AuditEvent.objects.filter(number=2).update(number=99)
    AuditEvent.objects.filter(number=3).update(number=2)
    AuditEvent.objects.filter(number=99).update(number=3)
    assert {kind for kind, _ in findings()} == {"changed"}


def test_a_row_that_is_unsealed_for_long_is_found(bob):
    write(bob, 1)
    assert findings() == []
    AuditEvent.objects.update(at=timezone.now() - dt.timedelta(minutes=2))
    assert findings() == [("unsealed", 0)]


def test_who_is_deleted_leaves_a_chain_that_holds(bob):
    write(bob)
    audit_chain.seal_pending()
    bob.delete()
    assert findings() == []


def test_pruning_keeps_an_anchor_and_says_so(bob, capsys):
    write(bob, 6)
    audit_chain.seal_pending()
    old = timezone.now() - dt.timedelta(days=40)
    AuditEvent.objects.update(number=None, seal="", key_id="")
    AuditHead.objects.all().delete()
    first = AuditEvent.objects.order_by("at").values_list("pk", flat=True)[:4]
    AuditEvent.objects.filter(pk__in=list(first)).update(at=old)
    audit_chain.seal_pending()
    call_command("prune_audit", "--keep-days", "30")
    assert "4 rows" in capsys.readouterr().out
    assert list(
        AuditEvent.objects.exclude(number=None).order_by("number").values_list("number", flat=True)
    ) == [5, 6]
    audit_chain.seal_pending()
    assert findings() == []
    pruned = AuditEvent.objects.get(action="audit.prune")
    assert (pruned.number, pruned.details["rows"]) == (7, 4)
    AuditEvent.objects.filter(number=5).delete()
    assert ("missing", 5) in findings()


def test_under_another_key_old_rows_are_said_not_to_be_verified(bob, settings, capsys):
    settings.SECRET_KEYS = ["5Qh3Yk0YyQm7mH6c9Q0m1o8Xb2dZ4vJtE7rK1pLsWcA"]
    write(bob, 2)
    audit_chain.seal_pending()
    settings.SECRET_KEYS = [
        "q8ZVt2sXo3n5wYb7LrK9mP1dFgH4jCuE6aTiR0yNxMk",
        *settings.SECRET_KEYS,
    ]
    write(bob, 2)
    audit_chain.seal_pending()
    assert findings() == []
    assert AuditEvent.objects.values("key_id").distinct().count() == 2
    settings.SECRET_KEYS = settings.SECRET_KEYS[:1]
    with pytest.raises(CommandError):
        call_command("verify_audit", "--json")
    report = json.loads(capsys.readouterr().out)
    assert [one["kind"] for one in report["findings"]] == ["no_key"]
    assert report["head"] == 4
