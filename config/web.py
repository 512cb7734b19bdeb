"""The web process: `python -m config.web [--host ADDRESS]`, on the port of the settings.

The forwarded headers count only from PATCHBAY_TRUSTED_PROXIES; without it they count from nobody,
and Django, which reads scheme and address from the connection, never looks at them.
"""

from __future__ import annotations

import argparse
import os

import uvicorn

from config.limits import HeadLimits

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

KEEP_ALIVE_SECONDS = 15
STOP_SECONDS = 3
CONNECTIONS = 2000  # beyond them a request is answered with 503


def main() -> None:
    from django.conf import settings

    parser = argparse.ArgumentParser(description="Patchbay's web process.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    options = parser.parse_args()
    uvicorn.run(
        "config.asgi:application",
        host=options.host,
        port=settings.PORT,
        loop="uvloop",
        http=HeadLimits,
        ws="none",
        lifespan="on",
        log_config=None,  # Django's
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.TRUSTED_PROXIES),
        forwarded_allow_ips=list(settings.TRUSTED_PROXIES),
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


if __name__ == "__main__":
    main()
