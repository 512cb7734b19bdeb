"""The least that can relay a reply: one process, no sign-in, no database, nothing kept.

python -m tests.bench.relay PROVIDER KEY      prints its address first
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import httpx
import uvicorn

provider, key = sys.argv[1:3]
client = httpx.AsyncClient(trust_env=False, timeout=60, limits=httpx.Limits(max_connections=None))


async def app(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    url = f"{provider}{scope['path']}"
    async with client.stream("POST", url, content=body, headers=headers) as response:
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": response.status_code, "headers": kind})
        async for chunk in response.aiter_raw():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False)
    await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
