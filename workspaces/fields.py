"""Model fields that keep secrets sealed."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.core import checks
from django.db import models
from django.db.models.query_utils import DeferredAttribute

from workspaces import vault


class Stored(bytes):
    """Sealed bytes as the database holds them."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Stored key={vault.key_id_of(self) or '?'}>"


class _Fresh(Stored):
    """Sealed bytes that this instance made: a save writes them."""

    __slots__ = ()


class _Erased:
    """The slot of a secret that was set to None on a stored row: a save writes NULL."""


class Sealed:
    """A sealed secret of one row. It opens only there, and only while the row's binding is what
    it was when the secret was sealed. `repr` shows only the key's id."""

    __slots__ = ("_field", "_instance", "stored")

    def __init__(self, stored: Stored, field: SealedField, instance: models.Model) -> None:
        self.stored = stored
        self._field = field
        self._instance = instance

    @property
    def key_id(self) -> str:
        """The id of the instance key it is sealed with; "" for bytes that are no sealed value."""
        return vault.key_id_of(self.stored)

    @property
    def readable(self) -> bool:
        """Whether the key is at hand: cheap, fit for lists. `open` can still fail."""
        return self.key_id in vault.keyring()

    def open(self) -> bytes:
        """The plaintext. Raises `vault.KeyMissing` or `vault.SecretUnreadable`."""
        return vault.keyring().open(self.stored, self._field.context(self._instance))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sealed) and self.stored == other.stored

    def __hash__(self) -> int:
        return hash(self.stored)

    def __repr__(self) -> str:
        return f"<Sealed key={self.key_id or '?'}>"


class SealedAttribute(DeferredAttribute):
    """Reads give `Sealed`, `Plain` or None; only `Plain`, None and sealed values can be set.

    The instance's `__dict__` holds, besides those: `Stored` as loaded and None as loaded (a save
    leaves the column alone), `_Fresh` and `_Erased` (a save writes).
    """

    def __get__(self, instance: models.Model | None, cls: type | None = None) -> Any:
        if instance is None:
            return self
        slots, name = instance.__dict__, self.field.attname
        if name not in slots:
            super().__get__(instance, cls)
            if slots[name] is _Erased:  # loading a deferred NULL is no order to erase
                slots[name] = None
        value = slots[name]
        if isinstance(value, Stored):
            return Sealed(value, self.field, instance)
        return None if value is _Erased else value

    def __set__(self, instance: models.Model, value: Any) -> None:
        slots, name = instance.__dict__, self.field.attname
        if isinstance(value, Sealed):
            value = value.stored
        elif value is None:
            known_empty = name in slots and slots[name] is None
            value = None if known_empty or instance._state.adding else _Erased
        elif not isinstance(value, Stored | vault.Plain):
            raise TypeError(f"{self.field.name}: assign vault.Plain(…) or None to a sealed field.")
        slots[name] = value


class SealedField(models.BinaryField):
    """A secret, sealed to its table, row, field and binding.

    `instance.secret = Plain(b"…")` seals at the next save; `instance.secret.open()` opens.
    `bound_to` names an attribute of the model, a text, that tells what the secret is for: when it
    changes, the stored secret no longer opens and has to be entered again.

    A save of an instance that didn't set the secret leaves the column as it is in the database:
    an old copy in memory can't undo a rotation or bring a replaced secret back.
    """

    descriptor_class = SealedAttribute

    def __init__(self, *args: Any, bound_to: str = "", **kwargs: Any) -> None:
        self.bound_to = bound_to
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> tuple[str, str, list, dict]:
        name, path, args, kwargs = super().deconstruct()
        if self.bound_to:
            kwargs["bound_to"] = self.bound_to
        return name, path, args, kwargs

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        found = super().check(**kwargs)
        if not self.model._meta.pk.has_default():
            found.append(
                checks.Error(
                    "A sealed field needs a primary key that is made before the first save.",
                    obj=self,
                    id="patchbay.E001",
                )
            )
        if self.bound_to and not hasattr(self.model, self.bound_to):
            found.append(
                checks.Error(
                    f"bound_to names {self.bound_to!r}, which the model does not have.",
                    obj=self,
                    id="patchbay.E002",
                )
            )
        return found

    def context(self, instance: models.Model) -> bytes:
        """The associated data of this field in this row."""
        if instance.pk is None:
            raise vault.SecretUnreadable
        pk = self.model._meta.pk
        return vault.context(
            self.model._meta.db_table,
            str(pk.to_python(instance.pk)),
            self.name,
            str(getattr(instance, self.bound_to)) if self.bound_to else "",
        )

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        slots = model_instance.__dict__
        value = slots.get(self.attname)
        if isinstance(value, vault.Plain):
            sealed = vault.keyring().seal(value.open(), self.context(model_instance))
            value = slots[self.attname] = _Fresh(sealed)
        if value is _Erased:
            return None
        if add or isinstance(value, _Fresh):
            return value
        return models.F(self.attname)

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Stored | None:
        return None if value is None else Stored(value)

    def get_prep_value(self, value: Any) -> bytes | None:
        if isinstance(value, Sealed):
            value = value.stored
        if value is None or isinstance(value, Stored):
            return value if value is None else bytes(value)
        raise TypeError(f"{self.name}: only sealed bytes go to the database.")

    def to_python(self, value: Any) -> Any:
        value = super().to_python(value)
        return Stored(value) if isinstance(value, memoryview) else value

    def value_to_string(self, obj: models.Model) -> str:
        value = self.value_from_object(obj)
        return base64.b64encode(self.get_prep_value(value)).decode() if value else ""


def sealed_fields() -> Iterator[tuple[type[models.Model], SealedField]]:
    """Every sealed field of every installed model, each once."""
    for model in apps.get_models(include_auto_created=True):
        if model._meta.managed and not model._meta.proxy:
            for field in model._meta.local_concrete_fields:
                if isinstance(field, SealedField):
                    yield model, field
