"""Calls the contenders' apps as a server would, one request after the other, and takes the time."""

from __future__ import annotations

import asyncio
import cProfile
import gc
import pstats
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from contenders import OVER_LITESTAR, App
from database import READ, Place

__all__ = [
    "Client",
    "Clock",
    "GarbageError",
    "Held",
    "Times",
    "checked",
    "counted",
    "held",
    "profiled",
    "requests",
    "timed",
    "timed_now",
]

Clock = Callable[[], int]  # nanoseconds
# By what is done (a path, ...) and contender: what does it once, and says how many microseconds a call of it took.
Blocks = Mapping[tuple[str, str], Callable[[Clock], Awaitable[float]]]
BlockingBlocks = Mapping[tuple[str, str], Callable[[Clock], float]]
Times = dict[tuple[str, str], list[float]]  # what they said, round by round

OF_EACH = {"nodb": 200, "read": 200, "write": 201, "refused": 400, "broken": 201}
SAID = {"nodb": b"nothing", "read": READ.encode(), "write": b"written"}
PREFIXES = ("/", "/flask-")
STATUSES = {
    **{f"{prefix}{name}": status for prefix in PREFIXES for name, status in OF_EACH.items()},
    **dict.fromkeys(OVER_LITESTAR, 200),
}
BODIES = {
    **{f"{prefix}{name}": said for prefix in PREFIXES for name, said in SAID.items()},
    **dict.fromkeys(OVER_LITESTAR, b"nothing"),
}
CHEAP = 10  # times as many calls where no database is asked; over Litestar as many turns instead


class GarbageError(Exception):
    """A contender does not do what is to be measured; the text says what it does."""


class Client:
    """Sends requests for one path to an app, with no server in between."""

    def __init__(self, app: App, path: str, at_start: Callable[[], Awaitable[None]] | None = None) -> None:
        self.app = app
        self.path = path
        self.at_start = at_start
        self.status = 0
        self.body = b""
        self.complete = False
        self.asked = False

    async def request(self) -> None:
        self.status, self.body, self.complete, self.asked = 0, b"", False, False
        await self.app(self.scope(), self.receive, self.send)

    def scope(self) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET" if STATUSES[self.path] == 200 else "POST",
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"127.0.0.1"), (b"accept", b"*/*")],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }

    async def receive(self) -> dict[str, Any]:
        if self.asked:
            await asyncio.get_running_loop().create_future()  # the client waits for its answer
        self.asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.at_start is not None:
                await self.at_start()
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            self.complete = not message.get("more_body", False)


@dataclass
class Held:
    """Which promises a contender keeps; None where it has no database. `writes`: rows that it was told are kept."""

    told_after_commit: bool | None = None
    refused_leaves_nothing: bool | None = None
    failed_commit_is_told: bool | None = None


async def checked(app: App, path: str) -> None:
    """One request, of which all is looked at.

    Raises:
        GarbageError: the answer is another one.
    """
    client = Client(app, path)
    try:
        await client.request()
    except Exception as error:
        raise GarbageError(f"{path} raised {error!r}") from error
    if (client.status, client.body, client.complete) != (STATUSES[path], BODIES[path], True):
        raise GarbageError(f"{path} answered {client.status} {client.body!r}, complete: {client.complete}")


async def held(app: App, place: Place, name: str, writes: str) -> Held:
    """Whether the contender keeps its promises, seen through another connection.

    Raises:
        GarbageError: it writes nothing at all.
    """
    found = Held()
    before = await place.rows(name)

    async def told() -> None:
        found.told_after_commit = await place.rows(name) == before + 1

    prefix = writes.removesuffix("write")
    await Client(app, writes, told).request()
    if await place.rows(name) != before + 1:
        raise GarbageError(f"{writes} answers {STATUSES[writes]}, and the row is not in the table")
    await Client(app, f"{prefix}refused").request()
    found.refused_leaves_nothing = await place.rows(name) == before + 1
    found.failed_commit_is_told = await _status_of(app, f"{prefix}broken") >= 500
    return found


async def _status_of(app: App, path: str) -> int:
    client = Client(app, path)
    try:
        await client.request()
    except Exception:
        return client.status or 500  # a server answers 500 when the app raises before it has begun an answer
    return client.status


async def timed(blocks: Blocks, *, rounds: int, clock: Clock) -> Times:
    """Each block once in a round, in another order each time."""
    times: Times = defaultdict(list)
    for key in _in_turn(blocks, rounds):
        times[key].append(await blocks[key](clock))
    return times


def timed_now(blocks: BlockingBlocks, *, rounds: int, clock: Clock) -> Times:
    """As `timed`."""
    times: Times = defaultdict(list)
    for key in _in_turn(blocks, rounds):
        times[key].append(blocks[key](clock))
    return times


def _in_turn(blocks: Iterable[tuple[str, str]], rounds: int) -> Iterator[tuple[str, str]]:
    """The garbage collector runs as it does in an app. What was there before is put aside, so that a collection costs
    each contender its own garbage; and it runs before each measurement, so that none pays for the one before.
    """
    keys, order = list(blocks), random.Random(20)
    gc.collect()
    gc.freeze()
    try:
        for _ in range(rounds):
            for key in _shuffled(keys, order):
                gc.collect()
                yield key
    finally:
        gc.unfreeze()


def _shuffled(keys: Sequence[tuple[str, str]], order: random.Random) -> Iterator[tuple[str, str]]:
    """What is compared is measured close together."""
    for what in dict.fromkeys(what for what, _ in keys):
        compared = [key for key in keys if key[0] == what]
        for _ in range(CHEAP if what in OVER_LITESTAR else 1):
            yield from order.sample(compared, len(compared))


def requests(apps: Mapping[tuple[str, str], App], calls: int) -> Blocks:
    """So many requests for each path of each app, path by path."""
    keys = [key for path in STATUSES for key in apps if key[0] == path]
    return {key: partial(_requests, apps[key], key[0], _calls(key[0], calls)) for key in keys}


def _calls(path: str, calls: int) -> int:
    return calls * CHEAP if path in ("/nodb", "/flask-nodb") else calls


def counted(rounds: int, calls: int) -> int:
    """How many rows each contender is to have written in so many rounds."""
    return rounds * _calls("/write", calls)


async def _requests(app: App, path: str, calls: int, clock: Clock) -> float:
    client, expected = Client(app, path), STATUSES[path]
    begun = clock()
    for _ in range(calls):
        await client.request()
        if client.status != expected:
            raise GarbageError(f"{path} answered {client.status}")
    return (clock() - begun) / calls / 1000


async def profiled(app: App, path: str, calls: int) -> pstats.Stats:
    """What so many requests spend their time on."""
    client = Client(app, path)
    for _ in range(min(calls, 50)):
        await client.request()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(calls):
        await client.request()
    profile.disable()
    return pstats.Stats(profile)
