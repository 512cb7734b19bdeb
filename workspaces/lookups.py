"""What the models of all apps ask in their own words. Registered with `WorkspacesConfig`."""

from __future__ import annotations

import re
from typing import Any

from django.db.models import CharField, Lookup
from django.db.models.sql.compiler import SQLCompiler


@CharField.register_lookup
class Among(Lookup):
    """`state__among=Turn.ACTIVE`: `state__in`, with the values in the statement itself.

    SQLite plans a statement before it sees the parameters, so it takes a partial index only for a
    condition that stands there in full, in the order of the index. For constants of the code.
    """

    lookup_name = "among"
    prepare_rhs = False

    def as_sql(self, compiler: SQLCompiler, connection: Any) -> tuple[str, list[Any]]:
        values = [str(value) for value in self.rhs]
        if not all(re.fullmatch("[a-z_]+", value) for value in values):
            raise ValueError("__among takes constants of the code")
        column, params = self.process_lhs(compiler, connection)
        return f"{column} IN ({', '.join(repr(value) for value in values)})", list(params)
