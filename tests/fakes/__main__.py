"""`python -m tests.fakes [--port N]`: runs until it is stopped; prints its address first."""

from __future__ import annotations

import argparse
import asyncio
import signal

import uvloop

from tests.fakes.app import App


async def main(port: int) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    app = App()
    print(await app.start(port), flush=True)
    await stopped.wait()
    await app.server.stop()


parser = argparse.ArgumentParser(prog="python -m tests.fakes", description=__doc__)
parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
uvloop.run(main(parser.parse_args().port))
