"""Many rows to msgspec structs, dicts and dataclasses, beside the loops that one writes by hand."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from statistics import median
from typing import Any

import asyncpg
import msgspec
from contenders import LIBRARIES, MissingError, imported
from database import ROWS
from measuring import Clock, GarbageError, Times, timed, timed_now
from report import Against, Section, aim, median_ratio, times_of

__all__ = ["measured"]

MOST = 1.3  # times as long as the fastest loop, for structs
NAMES = ("id", "name", "price", "stock", "note")
LIBRARY_NAMES = {one.name for one in LIBRARIES}
SOURCES = {"sqlite3": "tuples of sqlite3", "asyncpg": "records of asyncpg"}

Rows = Sequence[Any]
Loop = Callable[[Rows], list[Any]]
Way = Callable[[], Any]  # the rows, or what is awaited for them
Ways = dict[tuple[str, str], Way]


class Struct(msgspec.Struct):
    id: int
    name: str
    price: float
    stock: int
    note: str | None


@dataclass
class Data:
    id: int
    name: str
    price: float
    stock: int
    note: str | None


TARGETS: dict[type[Any], str] = {Struct: "msgspec structs", dict: "dicts", Data: "dataclasses"}

# The fastest of them, on the source at hand, is what the others are compared with.
LOOPS: dict[type[Any], dict[str, Loop]] = {
    Struct: {
        "[S(*row) for row in rows]": lambda rows: [Struct(*row) for row in rows],
        "list(starmap(S, rows))": lambda rows: list(starmap(Struct, rows)),
        "[S(a, b, ...) for a, b, ... in rows]": lambda rows: [Struct(a, b, c, d, e) for a, b, c, d, e in rows],
    },
    dict: {
        "[dict(zip(names, row)) for row in rows]": lambda rows: [dict(zip(NAMES, row)) for row in rows],  # noqa: B905
        "[{'id': a, ...} for a, ... in rows]": lambda rows: [
            {"id": a, "name": b, "price": c, "stock": d, "note": e} for a, b, c, d, e in rows
        ],
    },
    Data: {
        "[D(*row) for row in rows]": lambda rows: [Data(*row) for row in rows],
        "list(starmap(D, rows))": lambda rows: list(starmap(Data, rows)),
        "[D(a, b, ...) for a, b, ... in rows]": lambda rows: [Data(a, b, c, d, e) for a, b, c, d, e in rows],
    },
}


def records_to_dicts(rows: Rows) -> list[Any]:
    return list(map(dict, rows))


def measured_blocking(*, rounds: int, amount: int, clock: Clock) -> Section:
    """Each way once a round, on sqlite3: of rows that are in memory, and of rows that are read first."""
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        connection = stack.enter_context(closing(sqlite3.connect(":memory:")))

        def fetch() -> Rows:
            return connection.execute(ROWS["sqlite3"], (amount,)).fetchall()

        ways = of_loops("sqlite3", fetch())
        for name, target, loop in loops_for("sqlite3"):
            ways[read("sqlite3", target), name] = partial(lambda loop: loop(fetch()), loop)
        for one in LIBRARIES:
            try:
                session = stack.enter_context(imported(one.package, one.module).blocking_session())
            except MissingError as error:
                left_out[one.title] = str(error)
                continue
            ways |= of_result(one.name, "sqlite3", session.execute(ROWS["sqlite3"], amount))
            ways |= of_session(one.name, "sqlite3", session, amount)
        for key, way in ways.items():
            check(key, way(), amount)
        blocks = {key: partial(block, way) for key, way in in_order(ways)}
        times = timed_now(blocks, rounds=rounds, clock=clock)
    return section_of(times, left_out, amount)


async def measured(url: str, *, rounds: int, amount: int, clock: Clock) -> Section:
    """As `measured_blocking`, on asyncpg."""
    left_out: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)

        async def fetch(loop: Loop) -> Rows:
            return loop(await connection.fetch(ROWS["asyncpg"], amount))

        in_memory, reading = of_loops("asyncpg", await fetch(list)), {}
        for name, target, loop in loops_for("asyncpg"):
            reading[read("asyncpg", target), name] = partial(fetch, loop)
        for one in LIBRARIES:
            try:
                session = await stack.enter_async_context(imported(one.package, one.module).async_session(url))
            except MissingError as error:
                left_out[one.title] = str(error)
                continue
            in_memory |= of_result(one.name, "asyncpg", await session.execute(ROWS["asyncpg"], amount))
            reading |= of_session(one.name, "asyncpg", session, amount)
        for key, way in in_memory.items():
            check(key, way(), amount)
        for key, way in reading.items():
            check(key, await way(), amount)
        blocks = {key: partial(awaited_block, way, key in reading) for key, way in in_order(in_memory | reading)}
        times = await timed(blocks, rounds=rounds, clock=clock)
    return section_of(times, left_out, amount)


def made(source: str, target: type[Any]) -> str:
    return f"{SOURCES[source]} to {TARGETS[target]}"


def read(source: str, target: type[Any]) -> str:
    return f"{made(source, target)}, read first"


def in_order(ways: Ways) -> list[tuple[tuple[str, str], Way]]:
    order = [what(source, target) for source in SOURCES for target in TARGETS for what in (made, read)]
    return sorted(ways.items(), key=lambda item: order.index(item[0][0]))


def loops_for(source: str) -> list[tuple[str, type[Any], Loop]]:
    loops = [(title, target, loop) for target in LOOPS for title, loop in LOOPS[target].items()]
    return loops + [("list(map(dict, rows))", dict, records_to_dicts)] * (source == "asyncpg")


def of_loops(source: str, rows: Rows) -> Ways:
    return {(made(source, target), name): partial(loop, rows) for name, target, loop in loops_for(source)}


def of_result(name: str, source: str, result: Any) -> Ways:
    """Nothing where a result keeps what it made first, so that it cannot be asked to make it again."""
    if result.all() is result.all():
        return {}
    return {(made(source, target), name): partial(result.all, schema_type=schema_of(target)) for target in TARGETS}


def of_session(name: str, source: str, session: Any, amount: int) -> Ways:
    select = partial(session.select, ROWS[source], amount)
    return {(read(source, target), name): partial(select, schema_type=schema_of(target)) for target in TARGETS}


def schema_of(target: type[Any]) -> type[Any] | None:
    return None if target is dict else target


def check(key: tuple[str, str], found: list[Any], amount: int) -> None:
    """Every way gives the same rows."""
    expected = [(n, f"name {n}", n * 1.5, n % 100, "a note" if n % 3 else None) for n in range(1, amount + 1)]
    values = [
        tuple(one.values()) if type(one) is dict else tuple(getattr(one, name) for name in NAMES) for one in found
    ]
    if values != expected or TARGETS[type(found[0])] not in key[0]:
        raise GarbageError(f"{key[1]}, {key[0]}: the first of {len(found)} is {found[0]!r}")


def block(way: Way, clock: Clock) -> float:
    begun = clock()
    rows = way()
    time = (clock() - begun) / 1000
    del rows
    return time


async def awaited_block(way: Way, waits: bool, clock: Clock) -> float:
    if not waits:
        return block(way, clock)
    begun = clock()
    rows = await way()
    time = (clock() - begun) / 1000
    del rows
    return time


def section_of(times: Times, left_out: dict[str, str], amount: int) -> Section:
    tables, aims = [], []
    for what in dict.fromkeys(what for what, _ in times):
        loops = [name for of, name in times if of == what and name not in LIBRARY_NAMES]
        fastest = Against(min(loops, key=lambda name: median(times[what, name])), "by hand")
        titles = {fastest.name: f"by hand, {fastest.name}"} | {one.name: one.title for one in LIBRARIES}
        tables.append(times_of(what, times, titles=titles, against=fastest, each=f"for {amount:,} rows"))
        if what in (made(source, Struct) for source in SOURCES):
            aims.append(aim(f"{amount:,} {what}", median_ratio(what, times, "transept", fastest.name), MOST))
    return Section(tables, aims, left_out)
