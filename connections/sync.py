"""A list of models kept in step with the provider's: what stays of it, what comes, what goes.

The reference calls the two kinds `modelSelectionMode`; an imported file's word is kept among the
connection's unknown fields, from where export takes it, and `Connection.models_synced` follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError

from connections.providers.base import ListedModel
from connections.validation import MAX_MODELS, parse_models

MODE = "modelSelectionMode"
SYNCED = "automaticallySyncedFromProvider"


def is_synced(unknown_fields: Mapping[str, Any]) -> bool:
    return unknown_fields.get(MODE) == SYNCED


def with_mode(unknown_fields: Mapping[str, Any], synced: bool | None) -> dict[str, Any]:
    """The fields with the mode as chosen; None leaves it as it is. A word for a list of one's own
    stays the word it was."""
    fields = dict(unknown_fields)
    if synced:
        fields[MODE] = SYNCED
    elif synced is False and is_synced(fields):
        del fields[MODE]
    return fields


@dataclass(frozen=True, slots=True)
class Merged:
    """`unlisted_default`: the default model, when the provider doesn't list it (it is kept)."""

    models: list[str | dict[str, Any]]
    added: int
    removed: int
    unlisted_default: str = ""


def merge(
    models: Sequence[str | dict[str, Any]], listed: Sequence[ListedModel], default_model: str
) -> Merged:
    """The list in step with what the provider listed: entries that are there stay as they are, in
    their places, with all their settings; new ones come after them, in the provider's order; those
    it no longer lists go, but for the default model."""
    ids = {model.id for model in listed}
    kept = [entry for entry in models if _id(entry) in ids or _id(entry) == default_model]
    known = {_id(entry) for entry in kept}
    new: list[str | dict[str, Any]] = []
    for model in listed:
        if model.id not in known and (entry := _entry(model)) is not None:
            known.add(model.id)
            new.append(entry)
    new = new[: max(0, MAX_MODELS - len(kept))]
    gone = default_model if default_model and default_model not in ids else ""
    return Merged([*kept, *new], len(new), len(models) - len(kept), gone)


def _id(entry: str | dict[str, Any]) -> str:
    return entry if isinstance(entry, str) else entry["id"]


def _entry(model: ListedModel) -> str | dict[str, Any] | None:
    """As the list holds it: what the provider says of it and nothing else; None for what no list
    may hold."""
    entry: dict[str, Any] = {"id": model.id}
    if model.name and model.name != model.id:
        entry["name"] = model.name
    if model.context_window:
        entry["contextWindow"] = model.context_window
    if model.supports_images is not None:
        entry["supportsImages"] = model.supports_images
    try:
        (clean,) = parse_models([entry if len(entry) > 1 else model.id])
    except (ValidationError, ValueError):
        return None
    return clean
