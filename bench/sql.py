"""What SQL-first sessions cost: drivers by hand, Transept, and others, side by side in one run."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence

import rows
import statements
import streams
from contenders import ASYNCPG, SQL_FIRST
from database import Place, PlaceError, prepared
from measuring import GarbageError
from report import Section, aim, aims, machine, markdown_table, median_ratio, text_table, versions
from request import CLOCKS, Bench, add_options, check_options, positive

MOST = {"/read": ("one SELECT, asyncpg", 0.5), "/write": ("one INSERT, asyncpg", 0.85)}  # times as long as by hand

PAGE = """# What SQL-first sessions cost

The last measured run, written by `python3 run.py bench sql --markdown docs/reference/cost-sql.md`. How it is measured,
and how to read it, is in [bench/README.md](../../bench/README.md).
"""


async def requests(options: argparse.Namespace, place: Place) -> Section:
    """A request with one statement; with its promises, as some of the speed is made of what is left out."""
    options.path = list(MOST)
    bench = Bench(options, place, contenders=SQL_FIRST, hand=ASYNCPG)
    times = await bench.run()
    found = {path: median_ratio(path, times, "transept", ASYNCPG.name) for path in MOST}
    met = [aim(f"{title}: as long as by hand", found[path], most) for path, (title, most) in MOST.items()]
    return Section(bench.tables(times), met, bench.left_out)


async def of_statements(options: argparse.Namespace, place: Place) -> Section:
    clock = CLOCKS[options.clock]
    return await asyncio.to_thread(statements.measured, options.rounds, options.calls * 20, clock=clock)


async def of_rows(options: argparse.Namespace, place: Place) -> Section:
    how = {"rounds": options.rounds, "amount": options.rows, "clock": CLOCKS[options.clock]}
    tuples = await asyncio.to_thread(rows.measured_blocking, **how)
    records = await rows.measured(place.url, **how)
    return Section(tuples.tables + records.tables, tuples.aims + records.aims, tuples.left_out | records.left_out)


async def of_streams(options: argparse.Namespace, place: Place) -> Section:
    return await streams.measured(place.url, max(options.rounds // 20, 1), amount=options.streamed)


SECTIONS: dict[str, Callable[[argparse.Namespace, Place], Awaitable[Section]]] = {
    "requests": requests,
    "statements": of_statements,
    "rows": of_rows,
    "streams": of_streams,
}


def main(arguments: Sequence[str]) -> int:
    try:
        return asyncio.run(compare(parsed(arguments)))
    except (PlaceError, GarbageError) as error:
        print(f"sql.py: {error}", file=sys.stderr)
        return 1


async def compare(options: argparse.Namespace) -> int:
    async with prepared(options.url, options.pool) as place:
        about = [machine(), versions(await place.server()), amount(options)]
        print("\n".join(about), flush=True)
        found = []
        for name in options.only:
            found.append(await SECTIONS[name](options, place))
            for table in found[-1].tables:
                print(f"\n{text_table(table)}", flush=True)
    left_out = {title: reason for one in found for title, reason in one.left_out.items()}
    print(f"\n{text_table(aims(found))}\n")
    for title, reason in left_out.items():
        print(f"{title}: {reason}")
    if options.markdown is not None:
        tables = [markdown_table(table) for one in found for table in one.tables]
        reasons = "\n".join(f"- {title}: {reason}" for title, reason in left_out.items())
        parts = [PAGE, "; ".join(about) + ".", markdown_table(aims(found)), *tables, reasons]
        options.markdown.write_text("\n\n".join(part.strip() for part in parts if part) + "\n", "utf-8")
    return 0


def amount(options: argparse.Namespace) -> str:
    time = {"wall": "time as it passes", "cpu": "time of this process's processor"}[options.clock]
    return f"{options.rounds} rounds, {options.calls} requests or {options.calls * 20} statements in each; {time}"


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sql.py", description=__doc__)
    add_options(parser)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="this section; may be repeated")
    parser.add_argument(
        "--rows", type=positive, default=10_000, metavar="N", help="rows of one result; default: %(default)s"
    )
    parser.add_argument(
        "--streamed", type=positive, default=1_000_000, metavar="N", help="rows of one stream; default: %(default)s"
    )
    options = parser.parse_args(arguments)
    options.only = [name for name in SECTIONS if name in (options.only or SECTIONS)]
    check_options(parser, options)
    return options


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
