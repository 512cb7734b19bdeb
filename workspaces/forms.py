"""What forms of every app share."""

from __future__ import annotations

from collections.abc import Iterator


class Problems:
    """For a form whose page sums its errors up at the top (components/form_problems.html)."""

    @property
    def problems(self) -> Iterator[tuple[str, str, str]]:
        """Id of the field ("" for none), its label, the sentence."""
        for name, errors in self.errors.items():
            for error in errors:
                if name in self.fields:
                    yield self[name].id_for_label or f"id_{name}", str(self[name].label), error
                else:
                    yield "", "", error
