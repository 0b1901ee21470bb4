"""A proxy on loopback, between a client and its database server, that breaks the line at a chosen word.

It lives in a thread of its own, so blocking and async clients alike may be tested through it.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self, get_args

from servers import ports

Fault = Literal["cut_before", "cut_after", "hold", "count"]


@dataclass(eq=False)
class Link:
    """One client's line to the server. `cut`: it breaks when the server next says something."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    cut: bool = False

    def reset(self) -> None:
        for writer in (self.client, self.server):
            abort(writer)


class FaultProxy:
    """`with FaultProxy(host, port) as proxy:` and connect to 127.0.0.1 on `proxy.port`. `hits` counts the faults made.

    `on(b"COMMIT", fault)` arms one fault, for every client message with that word in it, until `clear()`:
    "cut_before" resets the line and the server never sees the message; "cut_after" resets it when the server has
    answered; "hold" keeps the message, and what this client sends after it, until `release()`; "count" does no harm.
    """

    def __init__(self, host: str, port: int) -> None:
        self.to = (host, port)
        self.port = 0
        self.hits = 0
        self._armed: tuple[bytes, Fault] | None = None
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._stop = asyncio.Event()
        self._released = asyncio.Event()

    def __enter__(self) -> Self:
        self._listener = ports.bound()
        self._listener.listen()
        self.port = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        with warnings.catch_warnings():
            # What connected in the last moment has a transport that the loop had no turn left to close: a pool that
            # connects anew does that. Its warning would come at some later test, and fail that.
            warnings.simplefilter("ignore", ResourceWarning)
            for held in (self._clients, self._links, self._tasks):
                held.clear()
            gc.collect()

    def on(self, word: bytes, fault: Fault) -> None:
        if fault not in get_args(Fault):
            raise ValueError(f"fault is {fault!r}; allowed are {', '.join(get_args(Fault))}")
        self._armed = (word.lower(), fault)

    def clear(self) -> None:
        """No fault from now on; what is held stays held."""
        self._armed = None

    def release(self) -> None:
        """Send on what is held."""
        self._loop.call_soon_threadsafe(self._let_go)

    def cut_all(self) -> None:
        """Reset every line; new ones may be made. Returns when it is done."""
        asyncio.run_coroutine_threadsafe(self._cut_all(), self._loop).result(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._listener)
        await self._stop.wait()
        server.close()
        await self._cut_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # one that was accepted in the last moment
        for client in self._clients:  # a task that was cancelled before it began has closed nothing
            client.transport.abort()
        await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        task = self._loop.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self.to)
        except (OSError, asyncio.CancelledError):  # the proxy may be stopped meanwhile
            abort(writer)
            return
        link = Link(writer, server_writer)
        self._links.add(link)
        pumps = [asyncio.create_task(self._up(reader, link)), asyncio.create_task(self._down(server_reader, link))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._links.discard(link)
            # gracefully: the server's last words, such as "terminated by an administrator", must arrive
            writer.close()
            server_writer.close()

    async def _up(self, reader: asyncio.StreamReader, link: Link) -> None:
        with suppress(OSError):
            while message := await reader.read(65536):
                fault = self._fault(message)
                if fault == "cut_before":
                    link.reset()
                    return
                if fault == "hold":
                    await self._released.wait()
                link.cut |= fault == "cut_after"
                link.server.write(message)
                await link.server.drain()

    async def _down(self, reader: asyncio.StreamReader, link: Link) -> None:
        with suppress(OSError):
            while message := await reader.read(65536):
                if link.cut:
                    link.reset()
                    return
                link.client.write(message)
                await link.client.drain()

    def _fault(self, message: bytes) -> Fault | None:
        if self._armed is None or self._armed[0] not in message.lower():
            return None
        self.hits += 1
        return self._armed[1]

    def _let_go(self) -> None:
        self._released.set()
        self._released = asyncio.Event()

    async def _cut_all(self) -> None:
        for link in list(self._links):
            link.reset()
        await asyncio.sleep(0)  # the transports close in the loop's next turn


def abort(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # closed already
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so that closing sends RST
    writer.transport.abort()
