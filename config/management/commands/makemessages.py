"""Django's own `makemessages`, as this repository keeps its catalogs: no places in the source,
which every change would move, nothing guessed, nothing kept that is used no more. Then it compiles
them, so that what runs is what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.commands import makemessages

# Of the header: what says nothing, and would change every time.
_IDLE = ('"POT-Creation-Date:', '"Report-Msgid-Bugs-To:')


class Command(makemessages.Command):
    # The names under which this code imports gettext and gettext_lazy besides `_`.
    xgettext_options = [*makemessages.Command.xgettext_options, "--keyword=_t", "--keyword=_lazy"]
    msgmerge_options = [*makemessages.Command.msgmerge_options, "--no-fuzzy-matching"]

    def handle(self, *args: Any, **options: Any) -> None:
        options |= {"no_location": True, "no_obsolete": True}
        options["ignore_patterns"] += [".*", "tests", "staticfiles", "data*"]
        if not (options["locale"] or options["exclude"]):
            options["all"] = True
        super().handle(*args, **options)
        for path in Path("locale").glob("*/LC_MESSAGES/django.po"):
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if not line.startswith(_IDLE)))
        call_command("compilemessages", ignore_patterns=options["ignore_patterns"], verbosity=0)
