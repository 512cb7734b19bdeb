"""The reference's JSON in and out: Craft Agents' `config.json`, both generations of it.

Three steps, none of which touches the database: `read` turns bytes into a `Document` or raises
`BadFile`; `plan` compares a document with what there is and says, item by item, what would happen;
`export` writes a file in the generation asked for and names what that one has no place for.
`connections.transfer` carries a plan out.

Nothing is lost on the way: fields that mean nothing here go to `Connection.unknown_fields`, and
texts that are read in another way to `Connection.imported_as`, under the reference's names (null:
the field wasn't there). Except secrets: what looks like one is left out, and the plan says so.

    document     what is read and planned, as dataclasses
    redaction    what looks like a secret
    generations  the words of each generation, translated here and back
    reading      bytes to a Document
    writing      connections to JSON
    planning     a Document against what there is
"""

from connections.schema.document import (
    MAX_BYTES,
    MAX_CONNECTIONS,
    MAX_WORKSPACES,
    BadFile,
    Change,
    DefaultRow,
    Document,
    FileWorkspace,
    Item,
    Plan,
    Result,
    Row,
)
from connections.schema.generations import Generation
from connections.schema.planning import plan
from connections.schema.reading import carried, carry, read
from connections.schema.redaction import has_secret_form, looks_secret
from connections.schema.writing import Exported, LeftOut, export, export_connection

__all__ = [
    "MAX_BYTES",
    "MAX_CONNECTIONS",
    "MAX_WORKSPACES",
    "BadFile",
    "Change",
    "DefaultRow",
    "Document",
    "Exported",
    "FileWorkspace",
    "Generation",
    "Item",
    "LeftOut",
    "Plan",
    "Result",
    "Row",
    "carried",
    "carry",
    "export",
    "export_connection",
    "has_secret_form",
    "looks_secret",
    "plan",
    "read",
]
