"""Static files, served before Django sees the request.

WhiteNoise's own middleware isn't async-capable: Django would push every async view, event streams
included, through a thread for it. Its index of files and its answers (304, ranges, gzip) are used
here directly.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from asgiref.typing import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope
from whitenoise.base import WhiteNoise

CHUNK = 64 * 1024
_HASHED = re.compile(r"\.[0-9a-f]{12}\.[^/]+\Z")
# What a page asks of a static file, in the names that WhiteNoise reads.
_READ = {
    b"range": "HTTP_RANGE",
    b"if-none-match": "HTTP_IF_NONE_MATCH",
    b"if-modified-since": "HTTP_IF_MODIFIED_SINCE",
    b"accept-encoding": "HTTP_ACCEPT_ENCODING",
}
# Opened by itself, a file (an SVG is a document) may load and run nothing.
SAFE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; base-uri 'none'; object-src 'none'; "
        "frame-ancestors 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class StaticFiles:
    """Answers GET and HEAD below `url` from the files below `root`, as they were at the start;
    everything else goes on to `app`, unknown names too (Django has the page that says so)."""

    def __init__(self, app: ASGI3Application, *, root: Path, url: str) -> None:
        self.app = app
        self.prefix = urlsplit(url).path
        self.files: dict[str, Any] = {}
        if root.is_dir():
            self.files = WhiteNoise(
                None,
                root=str(root),
                prefix=self.prefix,
                max_age=60,
                allow_all_origins=False,
                immutable_file_test=_is_hashed,
            ).files

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        file = None
        if scope["type"] == "http" and scope["path"].startswith(self.prefix):
            file = self.files.get(scope["path"])
        if file is None:
            await self.app(scope, receive, send)
            return
        asked = {
            _READ[name]: value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _READ
        }
        response = file.get_response(scope["method"], asked)
        await send(
            {
                "type": "http.response.start",
                "status": int(response.status),
                "headers": [
                    (name.lower().encode("latin-1"), value.encode("latin-1"))
                    for name, value in [*response.headers, *SAFE_HEADERS.items()]
                ],
                "trailers": False,
            }
        )
        # Read in the event loop: the files are small and in the page cache, where a read takes a
        # fraction of what handing it to a thread does.
        if response.file is not None:
            with response.file as body:
                while chunk := body.read(CHUNK):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _is_hashed(path: str, url: str) -> bool:
    return bool(_HASHED.search(url))
