"""Streams that are read together: what comes on calm ones waits for the beat."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from workspaces import network


class Peer:
    """The other sides of so many connections."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.streams: list[network.Stream] = []

    def say(self, text: bytes) -> None:
        for writer in self.writers:
            writer.write(text)

    async def deliver(self, text: bytes) -> None:
        """Until it has come to each stream."""
        self.say(text)
        while not all(stream._wire.buffer.endswith(text) for stream in self.streams):
            await asyncio.sleep(0.001)

    def be_calm(self) -> None:
        for stream in self.streams:
            stream.get_extra_info("be_calm")(True)


@contextlib.asynccontextmanager
async def peers(number: int) -> AsyncIterator[Peer]:
    peer = Peer()

    async def met(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer.writers.append(writer)

    server = await asyncio.start_server(met, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        for _ in range(number):
            peer.streams.append(await network.connect("127.0.0.1", port, timeout=5))
        while len(peer.writers) < number:
            await asyncio.sleep(0)
        try:
            yield peer
        finally:
            for stream in peer.streams:
                await stream.aclose()
            for writer in peer.writers:
                writer.close()


@pytest.fixture
def no_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next beat never comes by itself."""
    monkeypatch.setattr(network, "BEAT", 3600)
    monkeypatch.setattr(network, "LONGEST_BEAT", 3600)


MANY = network.FEW + 1


@pytest.mark.usefixtures("no_beat")
async def test_what_came_on_many_calm_streams_is_read_at_the_beat_as_one_piece():
    async with peers(MANY) as peer:
        peer.be_calm()
        reads = [asyncio.create_task(stream.read(1024, timeout=60)) for stream in peer.streams]
        followed: list[bool] = []
        network.beat().after = lambda: followed.append(all(read.done() for read in reads))
        for piece in (b"one ", b"two"):
            await peer.deliver(piece)
        assert not any(read.done() for read in reads)
        network.beat()._strike()
        assert await asyncio.gather(*reads) == [b"one two"] * MANY
        assert followed == [True]


@pytest.mark.usefixtures("no_beat")
async def test_the_beat_wakes_nobody_for_what_was_read_in_passing():
    async with peers(MANY) as peer:
        peer.be_calm()
        await peer.deliver(b"one")
        for stream in peer.streams:
            assert await stream.read(1024, timeout=60) == b"one"
        reads = [asyncio.create_task(stream.read(1024, timeout=60)) for stream in peer.streams]
        await asyncio.sleep(0)
        network.beat()._strike()
        await asyncio.sleep(0.01)
        assert not any(read.done() for read in reads)
        await peer.deliver(b"two")
        network.beat()._strike()
        assert await asyncio.gather(*reads) == [b"two"] * MANY


async def test_the_beat_comes():
    async with peers(MANY) as peer:
        peer.be_calm()
        for piece in (b"one", b"two"):
            reads = [stream.read(1024, timeout=60) for stream in peer.streams]
            reading = asyncio.gather(*reads)
            await asyncio.sleep(0)
            peer.say(piece)
            assert await asyncio.wait_for(reading, 30) == [piece] * MANY


@pytest.mark.usefixtures("no_beat")
async def test_few_streams_are_read_as_their_bytes_come():
    async with peers(network.FEW) as peer:
        peer.be_calm()
        reads = asyncio.gather(*(stream.read(1024, timeout=60) for stream in peer.streams))
        await asyncio.sleep(0)
        peer.say(b"one")
        assert await asyncio.wait_for(reads, 30) == [b"one"] * network.FEW


@pytest.mark.usefixtures("no_beat")
async def test_the_end_waits_for_nothing():
    async with peers(MANY) as peer:
        peer.be_calm()
        reads = asyncio.gather(*(stream.read(1024, timeout=60) for stream in peer.streams))
        await asyncio.sleep(0)
        peer.say(b"last")
        for writer in peer.writers:
            writer.close()
        assert await asyncio.wait_for(reads, 30) == [b"last"] * MANY
        assert network.beat().calm == 0


@pytest.mark.usefixtures("no_beat")
async def test_what_waits_for_the_beat_isnt_late():
    async with peers(MANY) as peer:
        peer.be_calm()
        reads = asyncio.gather(*(stream.read(1024, timeout=1) for stream in peer.streams))
        await asyncio.sleep(0)
        peer.say(b"in time")
        assert await asyncio.wait_for(reads, 30) == [b"in time"] * MANY


@pytest.mark.usefixtures("no_beat")
async def test_the_next_request_of_a_connection_is_answered_at_once():
    async with peers(MANY) as peer:
        peer.be_calm()
        first = peer.streams[0]
        await first.write(b"request")
        assert network.beat().calm == MANY - 1
        read = asyncio.create_task(first.read(1024, timeout=60))
        await asyncio.sleep(0)
        peer.writers[0].write(b"answer")
        assert await asyncio.wait_for(read, 30) == b"answer"
