"""Numbers as tables: for people who read a terminal, and for the documentation."""

from __future__ import annotations

import os
import platform
import pstats
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from contenders import Contender
from measuring import Held, Times

__all__ = [
    "Against",
    "Row",
    "Section",
    "aim",
    "aims",
    "machine",
    "markdown_table",
    "median_over",
    "median_ratio",
    "profile_table",
    "promises",
    "text_table",
    "times_of",
    "versions",
]

PACKAGES = [
    "transept",
    "starlette",
    "litestar",
    "sqlalchemy",
    "asyncpg",
    "greenlet",
    "anyio",
    "advanced-alchemy",
    "context-async-sqlalchemy",
    "sqlspec",
    "msgspec",
]
Row = list[str]


def versions(server: str) -> str:
    found = [f"PostgreSQL {server}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def machine() -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {sys.platform} {platform.machine()}, {os.cpu_count()} cores ({_processor()})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "of an unknown kind"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "of an unknown kind")


class Section(NamedTuple):
    """A part of a page: tables, rows for the table of aims, and who could not be measured, with the reason."""

    tables: list[list[Row]]
    aims: list[Row]
    left_out: dict[str, str]


class Against(NamedTuple):
    """What the others are compared with: the contender, and what it is called in a heading."""

    name: str
    called: str


def times_of(
    what: str, times: Times, *, titles: Mapping[str, str], against: Against, each: str = "a request"
) -> list[Row]:
    """One row for each contender that was measured doing this; the first row has the headings.

    A comparison is made in each round, and the median of these is shown, with the quartiles.
    """
    rows = [[what, f"µs {each}", f"µs over {against.called}", "times as long", "half of the rounds"]]
    for name, title in titles.items():
        measured = times.get((what, name))
        if measured is None:
            continue
        row = [title, f"{median(measured):.1f}", "", "", ""]
        if (what, against.name) in times and name != against.name:
            ratios = ratios_of(what, times, name, against.name)
            over = median_over(what, times, name, against.name)
            row[2:] = [f"{over:+.1f}", f"x{median(ratios):.2f}", _quartiles(ratios)]
        rows.append(row)
    return rows


def ratios_of(what: str, times: Times, name: str, against: str) -> list[float]:
    """How many times as long it took as the other one, round by round."""
    return [mine / other for mine, other in zip(times[what, name], times[what, against], strict=True)]


def differences_of(what: str, times: Times, name: str, against: str) -> list[float]:
    """How much longer it took than the other one, in microseconds, round by round."""
    return [mine - other for mine, other in zip(times[what, name], times[what, against], strict=True)]


def median_ratio(what: str, times: Times, name: str, against: str) -> float:
    return median(ratios_of(what, times, name, against))


def median_over(what: str, times: Times, name: str, against: str) -> float:
    return median(differences_of(what, times, name, against))


def aim(title: str, measured: float, most: float, *, unit: str = "x{:.2f}") -> Row:
    """A row of `aims`."""
    return [title, unit.format(most), unit.format(measured), "yes" if measured <= most else "NO"]


def aims(sections: Iterable[Section]) -> list[Row]:
    return [["What is aimed at", "at most", "measured", "met"], *(row for one in sections for row in one.aims)]


def _quartiles(ratios: Sequence[float]) -> str:
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return f"x{low:.2f} to x{high:.2f}"


def promises(found: dict[str, Held], contenders: Sequence[Contender]) -> list[Row]:
    rows = [["What holds", "201 is told after COMMIT", "400 leaves nothing", "a failed COMMIT is told"]]
    for one in contenders:
        if (held := found.get(one.name)) is not None:
            answers = (held.told_after_commit, held.refused_leaves_nothing, held.failed_commit_is_told)
            rows.append([one.title, *("yes" if answer else "NO" for answer in answers)])
    return rows


def text_table(rows: Sequence[Row]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = (
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Row]) -> str:
    head, *body = rows
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def profile_table(stats: pstats.Stats, calls: int, top: int = 40) -> str:
    """Functions by the time spent in themselves. A profiler makes calls dear: compare the lines, do not add them up."""
    rows = [["function", "µs a request", "with callees", "calls a request"]]
    entries = sorted(stats.stats.items(), key=lambda item: -item[1][2])
    for (file, line, function), (_, count, own, total, _) in entries[:top]:
        where = f"{'/'.join(Path(file).parts[-2:])}:{line} " if line else ""
        times = (f"{own / calls * 1e6:.1f}", f"{total / calls * 1e6:.1f}", f"{count / calls:.1f}")
        rows.append([f"{where}{function}"[:90], *times])
    return text_table(rows)
