"""Numbers as tables: for people who read a terminal, and for the documentation."""

from __future__ import annotations

import os
import platform
import pstats
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles

from contenders import BY_HAND, Contender
from measuring import Held, Times

__all__ = ["machine", "markdown_table", "profile_table", "promises", "text_table", "times_of", "versions"]

PACKAGES = [
    "transept",
    "starlette",
    "sqlalchemy",
    "asyncpg",
    "greenlet",
    "anyio",
    "advanced-alchemy",
    "context-async-sqlalchemy",
    "sqlspec",
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


def times_of(path: str, times: Times, contenders: Sequence[Contender]) -> list[Row]:
    """One row for each contender that was measured on this path; the first row has the headings.

    A comparison is made in each round, and the median of these is shown, with the quartiles.
    """
    against, name = ("bare", "bare Starlette") if path == "/nodb" else (BY_HAND.name, "by hand")
    rows = [[path, "µs a request", f"µs over {name}", "times as long", "half of the rounds"]]
    base = times.get((path, against))
    for one in contenders:
        measured = times.get((path, one.name))
        if measured is None:
            continue
        row = [one.title, f"{median(measured):.1f}", "", "", ""]
        if base is not None and one.name != against:
            over = [mine - other for mine, other in zip(measured, base, strict=True)]
            ratios = [mine / other for mine, other in zip(measured, base, strict=True)]
            row[2:] = [f"{median(over):+.1f}", f"x{median(ratios):.2f}", _quartiles(ratios)]
        rows.append(row)
    return rows


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
