"""The beat process: `python -m config.beat -s FILE`. It sends names of tasks when they are due.

Celery's own `beat` would load every task, and with them all of Django: three times the memory.
"""

from __future__ import annotations

import argparse

from celery.apps.beat import Beat
from django.conf import settings
from django.utils.log import configure_logging

from config.celery import app


class Light(Beat):
    """Beat without the tasks it sends."""

    def init_loader(self) -> None:
        app.set_current()


def main() -> None:
    parser = argparse.ArgumentParser(description="Patchbay's beat process.")
    parser.add_argument("-s", "--schedule", required=True, help="the file of what was sent when")
    options = parser.parse_args()
    configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)
    Light(app=app, schedule=options.schedule, quiet=True).run()


if __name__ == "__main__":
    main()
