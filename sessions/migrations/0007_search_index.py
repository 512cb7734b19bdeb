"""The index of the search: an FTS5 table that follows by triggers on SQLite, trigrams on PostgreSQL."""

from django.db import migrations, transaction
from django.db.utils import NotSupportedError, ProgrammingError

TABLE = "agent_sessions_searchtext"
FTS = "agent_sessions_search_fts"
INDEX = "agent_sessions_searchtext_trigrams"

SQLITE = [
    f"CREATE VIRTUAL TABLE {FTS} USING fts5(text, content='{TABLE}', content_rowid='id', "
    "tokenize='trigram')",
    f"CREATE TRIGGER {FTS}_insert AFTER INSERT ON {TABLE} BEGIN "
    f"INSERT INTO {FTS}(rowid, text) VALUES (new.id, new.text); END",
    f"CREATE TRIGGER {FTS}_delete AFTER DELETE ON {TABLE} BEGIN "
    f"INSERT INTO {FTS}({FTS}, rowid, text) VALUES ('delete', old.id, old.text); END",
    f"CREATE TRIGGER {FTS}_update AFTER UPDATE OF text ON {TABLE} BEGIN "
    f"INSERT INTO {FTS}({FTS}, rowid, text) VALUES ('delete', old.id, old.text); "
    f"INSERT INTO {FTS}(rowid, text) VALUES (new.id, new.text); END",
]
SQLITE_BACK = [
    *(f"DROP TRIGGER {FTS}_{when}" for when in ("insert", "delete", "update")),
    f"DROP TABLE {FTS}",
]


def make(apps, schema_editor):
    database = schema_editor.connection
    if database.vendor == "sqlite":
        for statement in SQLITE:
            schema_editor.execute(statement)
        return
    try:
        with transaction.atomic(using=database.alias):
            schema_editor.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            schema_editor.execute(
                f"CREATE INDEX {INDEX} ON {TABLE} USING gin (text gin_trgm_ops)"
            )
    except (ProgrammingError, NotSupportedError):
        # Without the right to add the extension the search works, only slower.
        return


def drop(apps, schema_editor):
    if schema_editor.connection.vendor == "sqlite":
        for statement in SQLITE_BACK:
            schema_editor.execute(statement)
        return
    schema_editor.execute(f"DROP INDEX IF EXISTS {INDEX}")


class Migration(migrations.Migration):
    dependencies = [("agent_sessions", "0006_sessions_at_hand")]

    operations = [migrations.RunPython(make, drop)]
