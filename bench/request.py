"""What a request costs: bare frameworks, SQLAlchemy by hand, Transept, and others, side by side in one process."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter_ns, process_time_ns

import imports
from contenders import BY_HAND, CONTENDERS, OVER_FLASK, OVER_LITESTAR, App, Contender, MissingError
from database import Place, PlaceError, prepared
from measuring import GarbageError, Held, Times, checked, counted, held, profiled, requests, timed
from report import (
    Against,
    Row,
    Section,
    aim,
    aims,
    machine,
    markdown_table,
    median_over,
    profile_table,
    promises,
    text_table,
    times_of,
    versions,
)

VARIABLE = "TRANSEPT_BENCH_POSTGRES"
USUAL = "postgresql://postgres@127.0.0.1:5432/postgres"
PATHS = ["/nodb", "/read", "/write", *OVER_LITESTAR, *OVER_FLASK]
BARE = {
    "/nodb": Against("bare", "bare Starlette"),
    "/flask-nodb": Against("flask", "bare Flask"),
    **dict.fromkeys(["/flask-read", "/flask-write"], Against("flask-by-hand", "by hand")),
    **dict.fromkeys(OVER_LITESTAR, Against("litestar", "bare Litestar")),
}
ADDED = ("litestar-transept", "litestar-advanced-alchemy")
MOST = 0.5  # times what Advanced Alchemy adds
WARM_UP = 50  # requests, of each path
CLOCKS = {"wall": perf_counter_ns, "cpu": process_time_ns}

PAGE = """# What it costs

The last measured run, written by `python3 run.py bench request --markdown docs/reference/cost.md`. How it is
measured, and how to read it, is in [bench/README.md](../../bench/README.md).
"""


class Bench:
    """One run: the contenders that are there, what they keep, and their times."""

    def __init__(
        self, options: argparse.Namespace, place: Place, *, contenders: Sequence[Contender], hand: Contender
    ) -> None:
        self.options = options
        self.place = place
        self.contenders = contenders
        self.hand = hand
        self.apps: dict[tuple[str, str], App] = {}
        self.held: dict[str, Held] = {}
        self.left_out: dict[str, str] = {}

    async def run(self) -> Times:
        async with AsyncExitStack() as stack:
            for one in self.contenders:
                try:
                    await self.prepare(one, await stack.enter_async_context(one.app(self.place)))
                except MissingError as error:
                    self.left_out[one.title] = str(error)
                except Exception as error:
                    self.left_out[one.title] = f"DOES NOT WORK: {error!r}"
            before = {one.name: await self.place.rows(one.name) for one in self.contenders}
            options = self.options
            blocks = requests(self.apps, options.calls)
            times = await timed(blocks, rounds=options.rounds, clock=CLOCKS[options.clock])
            for path, name in self.apps:
                if path.endswith("write"):
                    await self.count(name, before[name])
        return times

    async def prepare(self, one: Contender, app: App) -> None:
        """Nothing is timed that does not do its work."""
        paths = [path for path in one.paths if path in self.options.path]
        for path in paths:
            for _ in range(WARM_UP):
                await checked(app, path)
        if one.writes is not None:
            self.held[one.name] = await held(app, self.place, one.name, one.writes)
        self.apps.update({(path, one.name): app for path in paths})

    async def count(self, name: str, before: int) -> None:
        rows, told = await self.place.rows(name) - before, counted(self.options.rounds, self.options.calls)
        if rows != told:
            raise GarbageError(f"{name} answered 201 to {told} requests, and the table has {rows} rows of them")

    def tables(self, times: Times) -> list[list[list[str]]]:
        titles = {one.name: one.title for one in self.contenders}
        found = [times_of(path, times, titles=titles, against=self.against(path)) for path in self.options.path]
        return [*found, promises(self.held, self.contenders)] if self.held else found

    def against(self, path: str) -> Against:
        return BARE.get(path, Against(self.hand.name, "by hand"))


def main(arguments: Sequence[str]) -> int:
    options = parsed(arguments)
    try:
        return asyncio.run(profile(options) if options.profile else compare(options))
    except (PlaceError, MissingError, GarbageError) as error:
        print(f"request.py: {error}", file=sys.stderr)
        return 1


async def compare(options: argparse.Namespace) -> int:
    async with prepared(options.url, options.pool) as place:
        print(f"{machine()}\n{versions(await place.server())}\n{amount(options)}", flush=True)
        asked = [one for one in options.only or CONTENDERS if set(one.paths) & set(options.path)]
        bench = Bench(options, place, contenders=asked, hand=BY_HAND)
        times = await bench.run()
        tables = [*bench.tables(times), *over_litestar(times)]
        for rows in tables:
            print(f"\n{text_table(rows)}")
        print()
        for title, reason in bench.left_out.items():
            print(f"{title}: {reason}")
        if options.markdown is not None:
            options.markdown.write_text(await page(options, bench, tables), "utf-8")
    return 0


def over_litestar(times: Times) -> list[list[Row]]:
    """A table of what Transept adds as a part of what Advanced Alchemy adds, if all were measured."""
    rows = []
    for path in OVER_LITESTAR:
        if all((path, one) in times for one in ("litestar", *ADDED)):
            ours, theirs = (median_over(path, times, one, "litestar") for one in ADDED)
            rows.append(aim(f"{path}: what Transept adds, to what Advanced Alchemy adds", ours / theirs, MOST))
    return [aims([Section([], rows, {})])] if rows else []


async def page(options: argparse.Namespace, bench: Bench, tables: list[list[Row]]) -> str:
    about = f"{machine()}; {versions(await bench.place.server())}. {amount(options)}."
    left_out = "\n".join(f"- {title}: {reason}" for title, reason in bench.left_out.items())
    imported = imports.sentence(imports.added(runs=5))
    parts = (PAGE, about, *map(markdown_table, tables), left_out, imported)
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


async def profile(options: argparse.Namespace) -> int:
    one, path = options.profile
    async with prepared(options.url, options.pool) as place, one.app(place) as app:
        await checked(app, path)
        stats = await profiled(app, path, options.calls)
        print(f"{one.title}, {path}, {options.calls} calls\n\n{profile_table(stats, options.calls)}")
    return 0


def amount(options: argparse.Namespace) -> str:
    time = {"wall": "time as it passes", "cpu": "time of this process's processor"}[options.clock]
    requests = f"{options.rounds} rounds of {options.calls} requests, ten times as many where no database is asked"
    return f"{requests}; pools of {options.pool}; {time}"


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    names = ", ".join(one.name for one in CONTENDERS)
    parser = argparse.ArgumentParser(prog="request.py", description=__doc__, epilog=f"Contenders: {names}.")
    add_options(parser)
    parser.add_argument(
        "--only", action="append", type=contender, metavar="NAME", help="this contender; may be repeated"
    )
    parser.add_argument("--path", action="append", choices=PATHS, help="this path; may be repeated")
    parser.add_argument(
        "--profile", nargs=2, metavar=("NAME", "PATH"), help="show what a contender's path spends time on"
    )
    options = parser.parse_args(arguments)
    options.path = [path for path in PATHS if path in (options.path or PATHS)]
    check_options(parser, options)
    if options.profile:
        options.profile = profile_of(parser, *options.profile)
    return options


def add_options(parser: argparse.ArgumentParser) -> None:
    """What sql.py takes as well."""
    parser.add_argument("--rounds", type=positive, default=60, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--calls", type=positive, default=50, metavar="N", help="requests a round; default: %(default)s"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: without what PostgreSQL takes")
    parser.add_argument("--pool", type=positive, default=5, metavar="N", help="connections each; default: %(default)s")
    parser.add_argument(
        "--url", default=os.environ.get(VARIABLE, USUAL), help=f"PostgreSQL; default: {VARIABLE} or {USUAL}"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to this file")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.markdown is not None and not options.markdown.parent.is_dir():
        parser.error(f"argument --markdown: there is no folder {options.markdown.parent}")


def profile_of(parser: argparse.ArgumentParser, name: str, path: str) -> tuple[Contender, str]:
    try:
        found = contender(name)
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --profile: {error}")
    if path not in found.paths:
        parser.error(f"argument --profile: {name} has no path {path!r}; there are {', '.join(found.paths)}")
    return found, path


def contender(name: str) -> Contender:
    for one in CONTENDERS:
        if one.name == name:
            return one
    raise argparse.ArgumentTypeError(f"no contender {name!r}; there are {', '.join(one.name for one in CONTENDERS)}")


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number above 0 is needed, not {text!r}")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
