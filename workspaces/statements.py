"""Statements whose SQL is built once a process, for the few queries that every message needs.

Django builds the SQL of a query anew each time, which costs several times what a small database
takes to answer. `Select` builds it at its first use and keeps it, with the plan of how rows become
instances; `insert` and `update` do the same for one row. All three write what the ORM would.
"""

from __future__ import annotations

import datetime as dt
import functools
import inspect
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.query import ModelIterable, QuerySet, get_related_populators
from django.db.transaction import TransactionManagementError

_PREPARED: dict[type, models.Field] = {
    uuid.UUID: models.UUIDField(),
    dt.datetime: models.DateTimeField(),
    dt.date: models.DateField(),
}


class Slot(models.Value):
    """Stands in a query for a value that each call brings: a text, a number, a UUID or a time."""

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Slot]]:
        return "%s", (self,)


def _connection() -> BaseDatabaseWrapper:
    return connections["default"]


class Select[M: models.Model]:
    """A query with arguments, as a function that gives its queryset for them::

        _of_chat = Select(lambda chat_id: Turn.objects.filter(chat_id=chat_id))
        _of_chat.all(chat.pk)

    It may join, annotate, order, slice and lock; it may not prefetch, and no argument may decide
    about its shape (None is no value of an argument). One with `values_list` gives tuples.
    """

    def __init__(self, build: Callable[..., QuerySet[M]]) -> None:
        self._build = build
        self._plans: dict[str, _Plan] = {}

    def all(self, *values: Any) -> list[M]:
        connection = _connection()
        plan = self._plans.get(connection.vendor)
        if plan is None:
            plan = self._plans[connection.vendor] = _Plan(self._build, connection)
        if plan.locks and not connection.in_atomic_block:
            raise TransactionManagementError("a lock lasts as long as its transaction")
        with connection.cursor() as cursor:
            cursor.execute(plan.sql, plan.params(values, connection))
            return plan.made(cursor.fetchall(), connection)

    def first(self, *values: Any) -> M | None:
        """The first of what it finds: the query itself says how many rows it reads."""
        return next(iter(self.all(*values)), None)


class _Plan:
    """The SQL for one kind of database, and how its rows become instances."""

    def __init__(self, build: Callable[..., QuerySet[Any]], connection: BaseDatabaseWrapper):
        slots = [Slot(place) for place in range(len(inspect.signature(build).parameters))]
        queryset = build(*slots)
        assert not queryset._prefetch_related_lookups
        self.locks = queryset.query.select_for_update
        compiler = queryset.query.get_compiler(connection=connection)
        self.sql, given = compiler.as_sql()
        self._given = [param.value if isinstance(param, Slot) else _Fixed(param) for param in given]
        fields = [selected[0] for selected in compiler.select[: compiler.col_count]]
        self._converters = [
            (place, converter, expression)
            for place, (found, expression) in compiler.get_converters(fields).items()
            for converter in found
        ]
        self._is_model = issubclass(queryset._iterable_class, ModelIterable)
        if not self._is_model:
            return
        info, select, mode = compiler.klass_info, compiler.select, queryset._fetch_mode
        own = info["select_fields"]
        self._own = slice(own[0], own[-1] + 1)
        self._names = [selected[0].target.attname for selected in select[self._own]]
        self._make = functools.partial(info["model"].from_db, fetch_mode=mode)
        self._related = get_related_populators(info, select, "default", mode)
        self._annotated = list((compiler.annotation_col_map or {}).items())

    def params(self, values: Sequence[Any], connection: BaseDatabaseWrapper) -> list[Any]:
        return [
            given.value if type(given) is _Fixed else _prepared(values[given], connection)
            for given in self._given
        ]

    def made(self, rows: Sequence[Sequence[Any]], connection: BaseDatabaseWrapper) -> list[Any]:
        found = []
        for stored in rows:
            row = list(stored)
            for place, converter, expression in self._converters:
                row[place] = converter(row[place], expression, connection)
            if not self._is_model:
                found.append(tuple(row))
                continue
            one = self._make("default", self._names, row[self._own])
            for populator in self._related:
                populator.populate(row, one)
            for name, place in self._annotated:
                setattr(one, name, row[place])
            found.append(one)
        return found


class _Fixed:
    """A value that is part of the query."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _prepared(value: Any, connection: BaseDatabaseWrapper) -> Any:
    if value is None:
        raise TypeError("None would equal nothing: it needs a query of its own")
    field = _PREPARED.get(type(value))
    return value if field is None else field.get_db_prep_value(value, connection)


def prefetched(one: models.Model, name: str, rows: Sequence[models.Model], of: type) -> None:
    """Gives an instance its related rows, as `prefetch_related` does."""
    found = QuerySet(of)
    found._result_cache, found._prefetch_done = list(rows), True
    if not hasattr(one, "_prefetched_objects_cache"):
        one._prefetched_objects_cache = {}  # type: ignore[attr-defined]
    one._prefetched_objects_cache[name] = found  # type: ignore[attr-defined]


@functools.cache
def _columns(model: type[models.Model], vendor: str) -> tuple[list[models.Field], str]:
    fields = list(model._meta.local_concrete_fields)
    quote = _connection().ops.quote_name
    names = ", ".join(quote(field.column) for field in fields)
    marks = ", ".join(["%s"] * len(fields))
    table = quote(model._meta.db_table)
    return fields, f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608 (our own tables)


def insert(one: models.Model) -> None:
    """Writes a new row; its primary key must be there."""
    connection = _connection()
    fields, sql = _columns(type(one), connection.vendor)
    values = [field.get_db_prep_save(field.pre_save(one, True), connection) for field in fields]
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
    one._state.adding, one._state.db = False, "default"


@functools.cache
def _assignments(
    model: type[models.Model], names: tuple[str, ...], where: tuple[str, ...], vendor: str
) -> tuple[list[models.Field], list[models.Field], str]:
    meta, quote = model._meta, _connection().ops.quote_name
    fields = [meta.get_field(name) for name in names]
    keys = [meta.pk, *(meta.get_field(name) for name in where)]
    sets = ", ".join(f"{quote(field.column)} = %s" for field in fields)
    tests = " AND ".join(f"{quote(field.column)} = %s" for field in keys)
    return fields, keys, f"UPDATE {quote(meta.db_table)} SET {sets} WHERE {tests}"  # noqa: S608


def update(one: models.Model, *names: str, **where: Any) -> bool:
    """Writes these fields of a row, if its other fields are as `where` says; False when they
    aren't, or the row is gone."""
    connection = _connection()
    fields, keys, sql = _assignments(type(one), names, tuple(where), connection.vendor)
    values = [field.get_db_prep_save(field.pre_save(one, False), connection) for field in fields]
    for field, value in zip(keys, (one.pk, *where.values()), strict=True):
        values.append(field.get_db_prep_value(value, connection))
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.rowcount > 0
