"""The product's settings for a server whose SQLite database can be made full from outside.

While the file that `FULL` names is there, every connection of every process has
`max_page_count` at the size that the database has: the next page that it needs is refused, as by a
full disk ("database or disk is full").
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.db.backends.signals import connection_created

from config.settings import *  # noqa: F403
from config.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.system.full.Full"]
MOST_PAGES = 4_294_967_294


class Full(AppConfig):
    name = "tests.system"
    label = "full"

    def ready(self) -> None:
        connection_created.connect(_limit, weak=False)


def _limit(connection: Any, **kwargs: Any) -> None:
    flag, limited = Path(os.environ["FULL"]), False

    def execute(run: Any, sql: Any, values: Any, many: bool, context: dict[str, Any]) -> Any:
        nonlocal limited
        if flag.exists() != limited:
            limited = not limited
            pages = 1 if limited else MOST_PAGES  # it never goes below what is there
            context["connection"].connection.execute(f"PRAGMA max_page_count={pages}")
        return run(sql, values, many, context)

    connection.execute_wrappers.append(execute)
