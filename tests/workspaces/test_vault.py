"""Secrets at rest: sealed to their row and purpose, under keys that can be rotated and lost."""

from __future__ import annotations

import base64
import copy
import itertools
import logging
import pickle
import secrets
import stat
import uuid

import pytest
from django.apps import apps
from django.core import serializers
from django.core.management import CommandError, call_command
from django.db import connection, models, transaction
from django.test.utils import isolate_apps

from workspaces import rotation, vault
from workspaces.fields import Sealed, SealedField, Stored, sealed_fields
from workspaces.vault import KeyMissing, Keyring, Plain, SecretUnreadable
from workspaces.vault_models import VaultKey

CANARY = "sk-canary-7f3Q"

# A registry of its own: the model below is no part of the product's migrations.
with isolate_apps("workspaces"):

    class Safe(models.Model):
        id = models.UUIDField(primary_key=True, default=uuid.uuid4)
        name = models.CharField(max_length=50, default="")
        origin = models.CharField(max_length=50, default="https://a.example")
        secret = SealedField(null=True, bound_to="origin")
        spare = SealedField(null=True, bound_to="origin")

        class Meta:
            app_label = "workspaces"
            db_table = "test_safe"

        def __str__(self):
            return self.name


@pytest.fixture(scope="module")
def safe_table(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock():
        with connection.schema_editor() as editor:
            editor.create_model(Safe)
        yield
        with connection.schema_editor() as editor:
            editor.delete_model(Safe)


@pytest.fixture
def safes(safe_table, db, monkeypatch):
    fields = [(Safe, Safe._meta.get_field("secret")), (Safe, Safe._meta.get_field("spare"))]
    monkeypatch.setattr(rotation, "sealed_fields", lambda: iter(fields))
    return Safe.objects


@pytest.fixture
def keys(settings, tmp_path):
    """Hands out keys and says which of them the server has."""
    settings.KEYS_DIR = tmp_path / "keys"
    settings.START_SEALED = False

    class Keys:
        old, new, other = (secrets.token_urlsafe(32) for _ in range(3))

        def use(self, *texts):
            settings.SECRET_KEYS = list(texts)

        def id(self, text):
            return Keyring.parse([text], source="test").primary

    keys = Keys()
    keys.use(keys.old)
    return keys


def make(safes, secret=CANARY, **values):
    return safes.get(pk=safes.create(secret=Plain(secret), **values).pk)


def raw(safe, column="secret"):
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {column} FROM test_safe WHERE id = %s",
            [Safe._meta.pk.get_db_prep_value(safe.pk, connection)],
        )
        value = cursor.fetchone()[0]
    return None if value is None else bytes(value)


def write_raw(safe, blob, column="secret"):
    safe_rows = Safe.objects.filter(pk=safe.pk)
    safe_rows.update(**{column: Stored(blob)})


# -- sealing and opening ---------------------------------------------------------------------------


def test_a_secret_is_sealed_at_save_and_opens_again(safes, keys):
    safe = make(safes)
    assert isinstance(safe.secret, Sealed)
    assert safe.secret.open() == CANARY.encode()
    assert safe.secret.readable
    assert safe.secret.key_id == keys.id(keys.old)
    assert CANARY.encode() not in raw(safe)


def test_the_key_id_stands_in_the_stored_bytes(safes, keys):
    safe = make(safes)
    assert raw(safe)[:1] == b"\x01"
    assert raw(safe)[1:9].hex() == keys.id(keys.old)


def test_the_same_secret_twice_gives_different_bytes(safes, keys):
    assert raw(make(safes))[9:] != raw(make(safes))[9:]


def test_no_repr_shows_the_secret(safes, keys):
    safe = Safe(secret=Plain(CANARY))
    stored = make(safes)
    shown = [safe.secret, stored.secret, vars(safe), vars(stored), vault.keyring()]
    shown += [list(safes.values_list("secret"))]
    assert CANARY not in "".join(f"{item!r}{item!s}" for item in shown)
    assert keys.id(keys.old) in repr(stored.secret)
    assert keys.old not in repr(vault.keyring())


def test_a_secret_can_be_opened_before_it_is_saved(keys):
    assert Safe(secret=Plain(CANARY)).secret.open() == CANARY.encode()


@pytest.mark.parametrize("value", [CANARY, CANARY.encode(), memoryview(b"x"), 7])
def test_only_marked_plaintext_can_be_assigned(keys, value):
    with pytest.raises(TypeError):
        Safe(secret=value)


def test_plaintext_never_reaches_a_query(safes, keys):
    safe = make(safes)
    before = raw(safe)
    with pytest.raises(TypeError), transaction.atomic():
        safes.update(secret=Plain(CANARY))
    with pytest.raises(TypeError):
        safes.filter(secret=CANARY.encode()).exists()
    safe.secret = Plain("another")
    with pytest.raises(TypeError), transaction.atomic():
        safes.bulk_update([safe], ["secret"])
    assert raw(safe) == before


def test_a_plain_secret_cannot_be_pickled(keys):
    with pytest.raises(TypeError):
        pickle.dumps(Safe(secret=Plain(CANARY)).secret)


def test_copies_pickles_deferred_loads_and_refreshes_open(safes, keys, monkeypatch):
    monkeypatch.setitem(apps.get_app_config("workspaces").models, "safe", Safe)
    safe = make(safes)
    copied = copy.deepcopy(safe)
    assert pickle.loads(pickle.dumps(safe)).secret.open() == CANARY.encode()
    deferred = safes.defer("secret").get(pk=safe.pk)
    assert copied.secret.open() == CANARY.encode()
    assert "secret" in deferred.get_deferred_fields()
    assert deferred.secret.open() == CANARY.encode()
    safe.refresh_from_db()
    assert safe.secret.open() == CANARY.encode()


def test_bulk_create_seals(safes, keys):
    one, two = safes.bulk_create([Safe(secret=Plain("one")), Safe(secret=Plain("two"))])
    assert safes.get(pk=one.pk).secret.open() == b"one"
    assert safes.get(pk=two.pk).secret.open() == b"two"


def test_a_dump_and_load_keeps_the_sealed_bytes(safes, keys):
    safe = make(safes)
    before = raw(safe)
    field = Safe._meta.get_field("secret")
    text = field.value_to_string(safe)
    assert base64.b64decode(text) == before
    assert field.to_python(text) == before
    assert CANARY not in serializers.serialize("json", [safe])


def test_a_secret_is_erased_by_none(safes, keys):
    safe = make(safes)
    safe.secret = None
    safe.save()
    assert safe.secret is None
    assert raw(safe) is None


def test_a_deferred_secret_is_erased_by_none(safes, keys):
    safe = safes.defer("secret").get(pk=make(safes).pk)
    safe.secret = None
    safe.save()
    assert raw(safe) is None


# -- moved, damaged, bound elsewhere ---------------------------------------------------------------


def test_ciphertexts_swapped_between_rows_do_not_open_and_others_do(safes, keys):
    one, two, bystander = make(safes, "one"), make(safes, "two"), make(safes, "three")
    ones, twos = raw(one), raw(two)
    write_raw(one, twos)
    write_raw(two, ones)
    for safe in (one, two):
        with pytest.raises(SecretUnreadable):
            safes.get(pk=safe.pk).secret.open()
    assert safes.get(pk=bystander.pk).secret.open() == b"three"


def test_a_ciphertext_moved_to_another_field_does_not_open(safes, keys):
    safe = make(safes)
    write_raw(safe, raw(safe), column="spare")
    with pytest.raises(SecretUnreadable):
        safes.get(pk=safe.pk).spare.open()


def test_every_flipped_bit_is_noticed(safes, keys):
    safe = make(safes)
    blob = raw(safe)
    ring, context = vault.keyring(), Safe._meta.get_field("secret").context(safe)
    assert ring.open(blob, context) == CANARY.encode()
    for position, bit in itertools.product(range(len(blob)), (1, 128)):
        flipped = bytearray(blob)
        flipped[position] ^= bit
        with pytest.raises((SecretUnreadable, KeyMissing)):
            ring.open(bytes(flipped), context)


@pytest.mark.parametrize(
    "blob", [b"", b"\x01", b"sk-plain-text-from-somewhere", b"\x02" + bytes(120)]
)
def test_bytes_that_were_never_sealed_do_not_open(safes, keys, blob):
    safe = make(safes)
    write_raw(safe, blob)
    safe = safes.get(pk=safe.pk)
    assert not safe.secret.readable
    with pytest.raises(SecretUnreadable):
        safe.secret.open()


def test_a_secret_does_not_open_for_another_destination(safes, keys):
    safe = make(safes, origin="https://a.example")
    safe.origin = "https://evil.example"
    with pytest.raises(SecretUnreadable):
        safe.secret.open()
    safe.save()
    with pytest.raises(SecretUnreadable):
        safes.get(pk=safe.pk).secret.open()


def test_a_secret_copied_to_a_new_row_does_not_open(safes, keys):
    thief = safes.create(secret=make(safes).secret)
    with pytest.raises(SecretUnreadable):
        safes.get(pk=thief.pk).secret.open()


def test_texts_of_a_context_cannot_be_shifted_into_each_other():
    assert vault.context("ab", "c") != vault.context("a", "bc")


# -- saves that know less than the database --------------------------------------------------------


def test_a_stale_save_does_not_bring_a_replaced_secret_back(safes, keys):
    stale = make(safes, "old secret")
    fresh = safes.get(pk=stale.pk)
    fresh.secret = Plain("new secret")
    fresh.save()
    stale.name = "renamed"
    stale.save()
    again = safes.get(pk=stale.pk)
    assert (again.name, again.secret.open()) == ("renamed", b"new secret")


@pytest.mark.parametrize("load", [lambda rows: rows, lambda rows: rows.defer("secret")])
def test_a_stale_save_does_not_erase_a_secret_set_meanwhile(safes, keys, load):
    empty = safes.create()
    stale = load(safes).get(pk=empty.pk)
    assert stale.secret is None
    other = safes.get(pk=empty.pk)
    other.secret = Plain(CANARY)
    other.save()
    stale.save()
    assert safes.get(pk=empty.pk).secret.open() == CANARY.encode()


def test_a_save_tried_again_after_a_failure_still_writes_the_secret(safes, keys):
    safe = make(safes, "old")
    safe.secret = Plain("new")
    safe._meta.get_field("secret").pre_save(safe, add=False)  # a save that got no further
    safe.save()
    assert safes.get(pk=safe.pk).secret.open() == b"new"


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (base64.urlsafe_b64encode(secrets.token_bytes(16)).decode(), "16 bytes"),
        (base64.urlsafe_b64encode(secrets.token_bytes(33)).decode(), "33 bytes"),
        (secrets.token_hex(32), "48 bytes"),
        ("", "0 bytes"),
        ("not base64 at all!", "not base64"),
        ("schlüssel" * 5, "not base64"),
        (base64.urlsafe_b64encode(bytes(32)).decode(), "pattern"),
        (base64.urlsafe_b64encode(b"\xa7" * 32).decode(), "pattern"),
        (base64.urlsafe_b64encode(bytes(range(32))).decode(), "pattern"),
        (base64.urlsafe_b64encode(b"\x8f\x01\xfe\x33" * 8).decode(), "pattern"),
        (base64.urlsafe_b64encode(b"change-me-to-32-random-bytes-now").decode(), "readable text"),
    ],
    ids=itertools.count(),  # not the random keys: parallel runs compare the names of tests
)
def test_a_key_that_is_short_or_a_known_default_is_refused_in_one_line(text, says):
    with pytest.raises(vault.BadKeys) as caught:
        Keyring.parse([secrets.token_urlsafe(32), text], source="PATCHBAY_SECRET_KEYS")
    line = str(caught.value)
    assert line.startswith("PATCHBAY_SECRET_KEYS: key 2 ")
    assert says in line
    assert "\n" not in line
    assert not text or text not in line


def test_random_keys_are_never_taken_for_patterns():
    Keyring([secrets.token_bytes(32) for _ in range(5000)])


def test_keys_may_be_written_in_either_base64():
    key = secrets.token_bytes(32)
    plain, web = base64.b64encode(key), base64.urlsafe_b64encode(key)
    texts = {plain.decode(), web.decode(), web.decode().rstrip("=")}
    assert {Keyring.parse([text], source="test").primary for text in texts} == {
        Keyring([key]).primary
    }


def test_the_first_key_seals_and_all_open(safes, keys):
    old = make(safes)
    keys.use(keys.new, keys.old)
    new = make(safes)
    assert new.secret.key_id == keys.id(keys.new)
    assert safes.get(pk=old.pk).secret.open() == new.secret.open() == CANARY.encode()


def test_without_any_key_nothing_is_sealed(safes, keys):
    keys.use()
    with pytest.raises(KeyMissing), transaction.atomic():
        safes.create(secret=Plain(CANARY))
    assert not safes.exists()


def test_a_missing_key_seals_its_rows_and_the_list_still_loads(safes, keys):
    lost = make(safes)
    keys.use(keys.new)
    make(safes)
    readable = {safe.pk: safe.secret.readable for safe in safes.all()}
    assert readable.pop(lost.pk) is False
    assert list(readable.values()) == [True]
    with pytest.raises(KeyMissing) as caught:
        safes.get(pk=lost.pk).secret.open()
    assert caught.value.key_id == keys.id(keys.old)


# -- starting --------------------------------------------------------------------------------------


def test_the_first_start_makes_a_key_file_that_only_its_owner_reads(safes, keys):
    keys.use()
    report = rotation.start_check()
    path = vault.key_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert list(VaultKey.objects.values_list("key_id", flat=True)) == [report.primary]
    assert make(safes).secret.open() == CANARY.encode()
    assert rotation.start_check().primary == report.primary


def test_a_key_file_is_never_replaced_by_a_second_start(keys):
    first = vault.make_key_file().read_text()
    assert vault.make_key_file().read_text() == first


def test_a_key_added_to_the_file_counts_at_once(safes, keys):
    keys.use()
    vault.make_key_file()
    safe = make(safes)
    vault.write_key_file([keys.new, *vault.file_keys()], replace=True)
    assert make(safes).secret.key_id == keys.id(keys.new)
    assert safes.get(pk=safe.pk).secret.open() == CANARY.encode()


def test_no_key_file_is_made_over_sealed_secrets(safes, keys):
    rotation.start_check()
    make(safes)
    keys.use()
    with pytest.raises(vault.BadKeys) as caught:
        rotation.start_check()
    assert not vault.key_file().exists()
    assert keys.id(keys.old) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_start_with_no_matching_key_is_refused_and_changes_nothing(safes, keys):
    rotation.start_check()
    before = raw(safe := make(safes))
    keys.use(keys.other)
    with pytest.raises(vault.BadKeys, match="PATCHBAY_START_SEALED"):
        rotation.start_check()
    assert raw(safe) == before
    assert VaultKey.objects.count() == 1


def test_a_start_with_the_wrong_key_is_refused_before_the_first_secret(safes, keys):
    rotation.start_check()
    keys.use(keys.other)
    with pytest.raises(vault.BadKeys):
        rotation.start_check()


def test_a_sealed_start_leaves_every_secret_as_it_is(safes, keys, settings, caplog):
    rotation.start_check()
    before = raw(safe := make(safes))
    keys.use(keys.other)
    settings.START_SEALED = True
    assert rotation.start_check().missing == (keys.id(keys.old),)
    assert raw(safe) == before
    assert not safes.get(pk=safe.pk).secret.readable
    keys.use(keys.old)
    rotation.start_check()
    assert safes.get(pk=safe.pk).secret.open() == CANARY.encode()


def test_a_start_with_some_keys_missing_warns_and_goes_on(safes, keys, caplog):
    make(safes)
    keys.use(keys.new, keys.old)
    rotation.start_check()
    make(safes)
    keys.use(keys.new)
    with caplog.at_level(logging.WARNING):
        report = rotation.start_check()
    assert report.missing == (keys.id(keys.old),)
    assert keys.id(keys.old) in caplog.text


def test_another_key_under_a_known_id_is_not_taken_for_it(safes, keys):
    rotation.start_check()
    stolen = vault.context("vault key", keys.id(keys.old))
    VaultKey.objects.update(proof=Keyring([secrets.token_bytes(32)]).seal(b"?", stolen))
    with pytest.raises(vault.BadKeys):
        rotation.start_check()


# -- rotation --------------------------------------------------------------------------------------


def rotate():
    return [step.error for step in rotation.rotate()]


def test_a_rotation_moves_every_secret_to_the_first_key(safes, keys):
    rotation.start_check()
    pks = [make(safes, f"secret {number}").pk for number in range(5)]
    safes.filter(pk=pks[0]).update(name="untouched")
    safes.create()  # a row without a secret
    keys.use(keys.new, keys.old)
    assert rotate() == [""] * 5
    keys.use(keys.new)
    assert [safes.get(pk=pk).secret.open().decode() for pk in pks] == [
        f"secret {number}" for number in range(5)
    ]
    assert rotation.start_check().missing == ()
    assert rotate() == []


def test_a_rotation_goes_through_more_rows_than_a_page(safes, keys, monkeypatch):
    monkeypatch.setattr(rotation, "_BATCH", 3)
    for number in range(10):
        make(safes, str(number))
    keys.use(keys.new, keys.old)
    assert rotate() == [""] * 10
    assert rotation.rows_by_key() == {keys.id(keys.new): 10}


def test_a_rotation_stopped_half_way_ends_right_when_run_again(safes, keys):
    rotation.start_check()
    for number in range(6):
        make(safes, str(number))
    keys.use(keys.new, keys.old)
    half = rotation.rotate()
    for _ in range(3):
        next(half)
    half.close()
    both = {keys.id(keys.new): 3, keys.id(keys.old): 3}
    assert rotation.rows_by_key() == both
    assert rotation.key_report().in_use == both
    assert sorted(safe.secret.open() for safe in safes.all()) == [
        b"0",
        b"1",
        b"2",
        b"3",
        b"4",
        b"5",
    ]
    assert rotate() == [""] * 3
    assert rotation.key_report().removable == (keys.id(keys.old),)
    assert rotation.key_report().in_use == {keys.id(keys.new): 6}


def test_a_secret_replaced_during_the_rotation_stays_replaced(safes, keys, monkeypatch):
    safe = make(safes, "before")
    keys.use(keys.new, keys.old)
    rewrap = Keyring.rewrap

    def replaced_meanwhile(ring, blob):
        monkeypatch.setattr(Keyring, "rewrap", rewrap)
        keys.use(keys.old)  # another process that still seals with the old key
        other = safes.get(pk=safe.pk)
        other.secret = Plain("meanwhile")
        other.save()
        keys.use(keys.new, keys.old)
        return rewrap(ring, blob)

    monkeypatch.setattr(Keyring, "rewrap", replaced_meanwhile)
    assert rotate() == [""]
    again = safes.get(pk=safe.pk)
    assert (again.secret.open(), again.secret.key_id) == (b"meanwhile", keys.id(keys.new))


def test_a_secret_erased_during_the_rotation_stays_erased(safes, keys, monkeypatch):
    safe = make(safes)
    keys.use(keys.new, keys.old)
    rewrap = Keyring.rewrap

    def erased_meanwhile(ring, blob):
        safes.update(secret=None)
        return rewrap(ring, blob)

    monkeypatch.setattr(Keyring, "rewrap", erased_meanwhile)
    assert rotate() == []
    assert raw(safe) is None


def test_a_stale_save_does_not_undo_the_rotation(safes, keys):
    stale = make(safes)
    keys.use(keys.new, keys.old)
    rotate()
    stale.name = "edited meanwhile"
    stale.save()
    assert safes.get(pk=stale.pk).secret.key_id == keys.id(keys.new)


def test_a_rotation_without_the_old_key_reports_the_row_and_keeps_it(safes, keys, capsys):
    before = raw(safe := make(safes))
    keys.use(keys.new)
    make(safes)
    with pytest.raises(CommandError, match="1 secrets could not"):
        call_command("rotate_secrets")
    shown = capsys.readouterr()
    assert str(safe.pk) in shown.err
    assert f"Key {keys.id(keys.old)} seals 1 secrets." in shown.out
    assert raw(safe) == before
    assert keys.id(keys.old) in rotation.key_report().in_use


def test_the_command_says_which_key_may_go(safes, keys, capsys):
    rotation.start_check()
    make(safes)
    keys.use(keys.new, keys.old)
    call_command("rotate_secrets")
    shown = capsys.readouterr().out
    assert f"Key {keys.id(keys.new)} seals 1 secrets." in shown
    assert f"Key {keys.id(keys.old)} seals nothing any more: " in shown


def test_a_key_file_is_rotated_with_two_commands(safes, keys):
    keys.use()
    old = rotation.start_check().primary
    safe = make(safes)
    call_command("rotate_secrets", new_key=True)
    assert vault.keyring().ids[1:] == (old,)
    call_command("rotate_secrets", remove_key=old)
    assert old not in vault.keyring()
    assert stat.S_IMODE(vault.key_file().stat().st_mode) == 0o600
    assert safes.get(pk=safe.pk).secret.open() == CANARY.encode()
    assert rotation.start_check().missing == ()


def test_a_key_still_in_use_is_not_removed(safes, keys):
    keys.use()
    first = rotation.start_check().primary
    make(safes)
    with pytest.raises(CommandError, match="in use: it seals 1 secrets"):
        call_command("rotate_secrets", remove_key=first)
    call_command("rotate_secrets", new_key=True)
    damaged = bytearray(raw(safe := make(safes)))
    damaged[1:9] = bytes.fromhex(first)  # names the old key, and can't be re-wrapped
    write_raw(safe, bytes(damaged))
    with pytest.raises(CommandError, match="in use: it seals 1 secrets"):
        call_command("rotate_secrets", remove_key=first)
    assert first in vault.keyring()


def test_keys_of_the_environment_are_not_changed_by_the_command(safes, keys):
    with pytest.raises(CommandError, match="PATCHBAY_SECRET_KEYS"):
        call_command("rotate_secrets", new_key=True)
    assert not vault.key_file().exists()


def test_every_sealed_field_of_the_product_is_found():
    found = {(model._meta.db_table, field.name) for model, field in sealed_fields()}
    assert all(isinstance(field, SealedField) for _, field in sealed_fields())
    assert ("test_safe", "secret") not in found
