"""A database as files, and back: SQLite by its backup API, PostgreSQL by COPY in one snapshot.

What is read of a snapshot, is read by plain SQL of tables that every version has: the models of
this version may have columns that an older backup doesn't.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.core.management.color import no_style
from django.db import DatabaseError, connections, models
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from psycopg import sql

from config.backup.archive import BackupError
from workspaces.models import AuditHead

SQLITE_FILE = "database.sqlite3"

Query = Callable[[str], list[tuple[Any, ...]]]


@dataclass(slots=True)
class Snapshot:
    """The database at one moment: its files, and plain SQL on just that moment."""

    files: list[Path]
    query: Query


def engine(alias: str = "default") -> str:
    return connections[alias].vendor


@contextlib.contextmanager
def snapshot(folder: Path) -> Iterator[Snapshot]:
    """The database of the settings, written under `folder`. Holds up no writer: both engines read
    from a snapshot of their own."""
    taken = _sqlite_snapshot if engine() == "sqlite" else _postgresql_snapshot
    with taken(folder) as found:
        yield found


@contextlib.contextmanager
def _sqlite_snapshot(folder: Path) -> Iterator[Snapshot]:
    path = folder / SQLITE_FILE
    source = sqlite3.connect(f"file:{settings.DATABASES['default']['NAME']}?mode=ro", uri=True)
    copy = sqlite3.connect(path)
    with contextlib.closing(source), contextlib.closing(copy):
        # In one step: a backup in several starts again whenever somebody writes in between.
        source.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        yield Snapshot([path], lambda text: copy.execute(text).fetchall())


@contextlib.contextmanager
def _postgresql_snapshot(folder: Path) -> Iterator[Snapshot]:
    with psycopg.connect(**_parameters("default")) as link, link.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

        def query(text: str) -> list[tuple[Any, ...]]:
            return cursor.execute(text).fetchall()

        files = []
        for table, columns in _tables(cursor):
            path = folder / f"{table}.copy"
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            with path.open("wb") as file:
                # The first line names the columns: their order is that of this database.
                file.write((",".join(columns) + "\n").encode())
                statement = sql.SQL("COPY {} ({}) TO STDOUT").format(sql.Identifier(table), names)
                with cursor.copy(statement) as rows:
                    for data in rows:
                        file.write(data)
            files.append(path)
        yield Snapshot(files, query)


def _tables(cursor: psycopg.Cursor[Any]) -> list[tuple[str, list[str]]]:
    """The tables of the current schema with their columns, without generated ones."""
    cursor.execute(
        "SELECT c.table_name, array_agg(c.column_name::text ORDER BY c.ordinal_position)"
        " FROM information_schema.columns c JOIN information_schema.tables t"
        " USING (table_schema, table_name) WHERE t.table_schema = current_schema()"
        " AND t.table_type = 'BASE TABLE' AND c.is_generated = 'NEVER'"
        " GROUP BY c.table_name ORDER BY c.table_name"
    )
    return cursor.fetchall()


def _parameters(alias: str) -> dict[str, Any]:
    link = connections[alias]
    parameters = link.get_connection_params() | {"connect_timeout": 5}
    for ours in ("cursor_factory", "context", "prepare_threshold"):  # Django's manners, not ours
        parameters.pop(ours, None)
    return parameters


# -- what stands in a snapshot ---------------------------------------------------------------------


def migrations_in(query: Query) -> list[list[str]]:
    return sorted([app, name] for app, name in query("SELECT app, name FROM django_migrations"))


def files_in(query: Query) -> Iterator[str]:
    """The names of the files that rows point at, each once."""
    seen: set[str] = set()
    for model in apps.get_models():
        for column in model._meta.local_concrete_fields:
            if isinstance(column, models.FileField):
                for (name,) in query(f'SELECT "{column.column}" FROM "{model._meta.db_table}"'):  # noqa: S608 (names of our own models)
                    if name and name not in seen:
                        seen.add(name)
                        yield name


def rows_in(query: Query, named: dict[str, type[models.Model]]) -> dict[str, int]:
    return {
        word: query(f'SELECT count(*) FROM "{model._meta.db_table}"')[0][0]  # noqa: S608 (as above)
        for word, model in named.items()
    }


def audit_head_in(query: Query) -> list[int | str]:
    rows = query(f'SELECT number, seal FROM "{AuditHead._meta.db_table}"')  # noqa: S608 (as above)
    return list(rows[0]) if rows else [0, ""]


# -- and back --------------------------------------------------------------------------------------


def check_known(applied: list[list[str]]) -> None:
    """Raises `BackupError` for a backup of a version that this one can't bring up to date."""
    known = MigrationLoader(None, ignore_no_migrations=True).disk_migrations
    if unknown := [pair for pair in applied if tuple(pair) not in known]:
        app, name = unknown[0]
        raise BackupError(
            f"This backup was made by another version: it has the migration {app}.{name}, which is "
            "unknown here. Restore it with the version that made it, or a newer one."
        )


@contextlib.contextmanager
def added(alias: str, **changes: Any) -> Iterator[str]:
    """One more database, like the one of the settings but for `changes`, while this lasts."""
    connections.databases[alias] = {**connections.databases["default"], **changes}
    try:
        yield alias
    finally:
        _leave(alias)
        connections.databases.pop(alias)
        with contextlib.suppress(AttributeError):
            del connections[alias]


def _leave(alias: str) -> None:
    link = connections[alias]
    link.close()
    if hasattr(link, "close_pool"):
        link.close_pool()


def bring_up_to_date(alias: str) -> None:
    call_command("migrate", database=alias, interactive=False, verbosity=0, skip_checks=True)
    _leave(alias)


def check_sqlite(path: Path) -> None:
    """Raises `BackupError` when SQLite finds the file damaged."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as link:
            found = link.execute("PRAGMA integrity_check(1)").fetchone()[0]
            link.execute("PRAGMA journal_mode=WAL")
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise BackupError(f"The database in this backup is damaged ({found}).")


def is_in_use(alias: str = "default") -> int:
    """How many others are connected to a PostgreSQL database."""
    with psycopg.connect(**_parameters(alias)) as link:
        found = link.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchone()
    return found[0] if found else 0


def holds_people(alias: str, table: str) -> bool:
    """Whether a PostgreSQL database is an installation that somebody uses."""
    link = connections[alias]
    with link.cursor() as cursor:
        if table not in link.introspection.table_names(cursor):
            return False
        cursor.execute(f'SELECT EXISTS (SELECT 1 FROM "{table}")')  # noqa: S608 (our own table)
        return cursor.fetchone()[0]


def load_postgresql(alias: str, folder: Path, applied: list[list[str]]) -> None:
    """Fills an empty PostgreSQL database: the tables as the backup's version made them, then all
    rows in one transaction. Raises `BackupError`."""
    link = connections[alias]
    with link.cursor() as cursor:
        for table in link.introspection.table_names(cursor):
            cursor.execute(f'DROP TABLE "{table}" CASCADE')
    executor = MigrationExecutor(link)
    known = {(app, name) for app, name in applied}
    nodes = executor.loader.graph.node_map
    executor.migrate(
        sorted(key for key in known if not {child.key for child in nodes[key].children} & known)
    )
    files = {path.stem: path for path in folder.glob("*.copy")}
    try:
        with psycopg.connect(**_parameters(alias)) as raw, raw.cursor() as cursor:
            tables = [table for table, _ in _tables(cursor)]
            names = sql.SQL(", ").join(map(sql.Identifier, tables))
            cursor.execute(sql.SQL("TRUNCATE {}").format(names))
            for table in tables:
                if table in files:
                    _copy_in(cursor, table, files[table])
            for statement in _sequences(alias):
                cursor.execute(statement)
    except psycopg.Error as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise BackupError(f"The database refuses what is in this backup: {reason}") from None


def _copy_in(cursor: psycopg.Cursor[Any], table: str, path: Path) -> None:
    with path.open("rb") as file:
        columns = file.readline().decode().strip().split(",")
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with cursor.copy(statement) as rows:
            while data := file.read(1 << 20):
                rows.write(data)


def _sequences(alias: str) -> list[str]:
    link = connections[alias]
    with link.cursor() as cursor:
        found = set(link.introspection.table_names(cursor))
    installed = [
        model
        for model in apps.get_models(include_auto_created=True)
        if model._meta.db_table in found
    ]
    return link.ops.sequence_reset_sql(no_style(), installed)


@contextlib.contextmanager
def scratch_postgresql(name: str) -> Iterator[str]:
    """A database of its own for a rehearsal, removed afterwards; its alias."""
    with psycopg.connect(**_parameters("default"), autocommit=True) as link:
        try:
            link.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.Error as error:
            raise BackupError(
                "A rehearsal needs a database of its own, and this account can't make one "
                f"({type(error).__name__}): let it, with ALTER ROLE … CREATEDB."
            ) from None
        try:
            options = {
                key: value
                for key, value in connections.databases["default"]["OPTIONS"].items()
                if key != "pool"
            }
            with added("rehearsal", NAME=name, OPTIONS=options) as alias:
                yield alias
        finally:
            with contextlib.suppress(DatabaseError, psycopg.Error):
                link.execute(
                    sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
                )
