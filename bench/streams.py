"""Streams of many rows: how fast they come, and whether memory grows with them. Each runs in a process of its own."""

from __future__ import annotations

import asyncio
import json
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import asyncpg
from contenders import LIBRARIES, MissingError, imported
from database import ROWS
from measuring import GarbageError
from report import Row, Section, aim

__all__ = ["measured"]

NAMES = ("id", "name", "price", "stock", "note")
AS_THEY_COME, DICTS = "by-hand", "by-hand-dicts"
TITLES = {AS_THEY_COME: "a cursor by hand, rows as they come", DICTS: "a cursor by hand, each row to a dict"}
FLAT = 4.0  # megabytes, between a tenth of the rows and all of them
PIECE = 1000  # rows; the libraries have the same


class Ran(NamedTuple):
    """`peak`: the most memory that the process has had, in megabytes."""

    rows_a_second: float
    peak: float


async def measured(url: str, rounds: int, *, amount: int) -> Section:
    """Each stream once a round, of so many rows; and once of a tenth of them, for what memory they take."""
    left_out: dict[str, str] = {}
    names = dict(TITLES)
    for one in LIBRARIES:
        try:
            imported(one.package, one.module)
            names[one.name] = f"{one.title}, dicts"
        except MissingError as error:
            left_out[one.title] = str(error)
    tables, aims = [], []
    for driver in ROWS:
        few: dict[str, Ran] = {}
        for name, title in names.items():
            try:
                few[name] = ran(driver, name, url, max(amount // 10, 1))
            except GarbageError as error:
                left_out[f"{title}, a stream on {driver}"] = f"DOES NOT WORK: {error}"
        all_of: dict[str, list[Ran]] = {name: [] for name in few}
        for _ in range(rounds):
            for name in few:
                all_of[name].append(ran(driver, name, url, amount))
        tables.append(table_of(f"{amount:,} rows, {driver}", names, few, all_of))
        grown = median(one.peak for one in all_of["transept"]) - few["transept"].peak
        aims.append(aim(f"a stream of {amount:,} rows, {driver}: memory grows by", grown, FLAT, unit="{:.1f} MB"))
    return Section(tables, aims, left_out)


def table_of(what: str, names: dict[str, str], few: dict[str, Ran], all_of: dict[str, list[Ran]]) -> list[Row]:
    rows = [[what, "rows a second", "as fast as dicts by hand", "MB at the most", "MB more than for a tenth"]]
    for name in few:
        peak = median(one.peak for one in all_of[name])
        speeds = [one.rows_a_second for one in all_of[name]]
        beside = [
            mine.rows_a_second / hand.rows_a_second for mine, hand in zip(all_of[name], all_of[DICTS], strict=True)
        ]
        rows.append(
            [
                names[name],
                f"{median(speeds):,.0f}",
                f"x{median(beside):.2f}",
                f"{peak:.1f}",
                f"{peak - few[name].peak:+.1f}",
            ]
        )
    return rows


def ran(driver: str, name: str, url: str, amount: int) -> Ran:
    command = [sys.executable, __file__, driver, name, str(amount)]
    done = subprocess.run(command, input=url, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise GarbageError(f"{name}, a stream on {driver}: {done.stderr.strip().rpartition(chr(10))[2]}")
    return Ran(*json.loads(done.stdout))


# What the process of a stream does.

Read = tuple[int, int, float]  # how many rows, the sum of their numbers, and the seconds that it took


def main(driver: str, name: str, amount: int) -> None:
    if driver == "sqlite3":
        count, total, seconds = read_blocking(name, amount)
    else:
        count, total, seconds = asyncio.run(read_async(name, sys.stdin.read(), amount))
    if (count, total) != (amount, amount * (amount + 1) // 2):
        raise GarbageError(f"{count} rows came, and their numbers add up to {total}")
    print(json.dumps([count / seconds, peak()]))


def read_blocking(name: str, amount: int) -> Read:
    if name in TITLES:
        cursor = sqlite3.connect(":memory:").execute(ROWS["sqlite3"], (amount,))
        return tuples_read(cursor) if name == AS_THEY_COME else dicts_made(cursor)
    module = module_of(name)
    with module.blocking_session() as session:
        count = total = 0
        begun = perf_counter()
        for row in module.stream(session, ROWS["sqlite3"], amount):
            count += 1
            total += row["id"]
        return count, total, perf_counter() - begun


def tuples_read(cursor: Iterable[tuple[int, ...]]) -> Read:
    count = total = 0
    begun = perf_counter()
    for row in cursor:
        count += 1
        total += row[0]
    return count, total, perf_counter() - begun


def dicts_made(cursor: Iterable[tuple[int, ...]]) -> Read:
    count = total = 0
    begun = perf_counter()
    for values in cursor:
        row = dict(zip(NAMES, values))  # noqa: B905 - as one writes it
        count += 1
        total += row["id"]
    return count, total, perf_counter() - begun


async def read_async(name: str, url: str, amount: int) -> Read:
    count = total = 0
    if name in TITLES:
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            begun = perf_counter()
            async for record in connection.cursor(ROWS["asyncpg"], amount, prefetch=PIECE):
                row = record if name == AS_THEY_COME else dict(record)
                count += 1
                total += row["id"]
            seconds = perf_counter() - begun
        await connection.close()
        return count, total, seconds
    module = module_of(name)
    async with module.async_session(url) as session:
        begun = perf_counter()
        async for row in module.stream(session, ROWS["asyncpg"], amount):
            count += 1
            total += row["id"]
        return count, total, perf_counter() - begun


def module_of(name: str) -> Any:
    return next(imported(one.package, one.module) for one in LIBRARIES if one.name == name)


def peak() -> float:
    """In megabytes. `ru_maxrss` of a new process begins, on Linux, with what the one that started it had."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
