"""The product's settings for a server whose providers' own hosts are the fakes.

Connections without a base URL go where they would go in production, with the provider's name in the
request and in the TLS handshake; only the last step, to which address and port a name leads, is
made here. `LEADS` names a JSON file of `[pattern of host, port]`, read at each connect, so that a
test may shut a host's port. The server trusts the fakes' certificate by `SSL_CERT_FILE`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from django.apps import AppConfig

from config.settings import *  # noqa: F403
from config.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.system.led.Led"]


def port_of(host: str) -> int | None:
    """Where a host leads on this machine, None for one that leads nowhere else."""
    leads = json.loads(Path(os.environ["LEADS"]).read_text())
    return next((port for pattern, port in leads if re.fullmatch(pattern, host)), None)


class Led(AppConfig):
    name = "tests.system"
    label = "led"

    def ready(self) -> None:
        from workspaces import egress

        backend = egress._GuardedBackend
        connect = backend.connect_tcp

        async def connect_tcp(self: Any, host: str, port: int, *more: Any, **options: Any) -> Any:
            if led := port_of(host):
                host, port = "127.0.0.1", led
            return await connect(self, host, port, *more, **options)

        backend.connect_tcp = connect_tcp  # type: ignore[method-assign]
