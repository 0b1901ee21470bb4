"""What importing Transept costs, beyond Starlette and SQLAlchemy, which an app imports anyway."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Added", "added", "sentence"]

TARGET = 60  # milliseconds
BEFORE = "import starlette.applications, starlette.responses, starlette.routing, sqlalchemy.orm, sqlalchemy.ext.asyncio"
EXTENSION = "from transept.extensions.starlette import SQLAlchemyAsyncConfig, Transept"
MARK = "--- from here on"
FRAMEWORKS = {"starlette", "fastapi", "litestar", "flask", "quart"}
DRIVERS = {"asyncpg", "psycopg", "psycopg2", "aiosqlite", "sqlite3", "asyncmy", "pymysql", "MySQLdb", "sqlalchemy"}


@dataclass
class Added:
    """`total`: milliseconds; `modules`: the milliseconds of each, without what it imports in turn, dearest first."""

    total: float
    modules: list[tuple[str, float]]


def added(runs: int) -> Added:
    """What the Starlette extension adds, medians of so many runs."""
    _imported()  # compiled now, if it was not
    totals = []
    modules: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        found = _imported()
        totals.append(sum(found.values()))
        for name, milliseconds in found.items():
            modules[name].append(milliseconds)
    medians = ((name, median(times)) for name, times in modules.items())
    return Added(median(totals), sorted(medians, key=lambda one: -one[1]))


def _imported() -> dict[str, float]:
    code = f"{BEFORE}\nimport sys\nprint({MARK!r}, file=sys.stderr, flush=True)\n{EXTENSION}"
    done = _python("-X", "importtime", "-c", code)
    found = {}
    for line in done.stderr.partition(MARK)[2].splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if own.strip().isdecimal():
            found[rest.partition("|")[2].strip()] = int(own) / 1000
    return found


def foreign() -> list[str]:
    """Frameworks and drivers that `import transept` alone brings in."""
    done = _python("-c", "import sys, transept; print(*sys.modules)")
    return sorted({name.partition(".")[0] for name in done.stdout.split()} & (FRAMEWORKS | DRIVERS))


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(f"imports.py: {done.stderr.strip().splitlines()[-1]}")
    return done


def sentence(found: Added) -> str:
    return (
        f"`import transept.extensions.starlette` adds {found.total:.0f} ms to Starlette and SQLAlchemy "
        f"({len(found.modules)} modules)."
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="imports.py", description=__doc__)
    parser.add_argument("--runs", type=int, choices=range(1, 101), default=9, metavar="N", help="default: %(default)s")
    found = added(parser.parse_args(arguments).runs)
    print(f"{sentence(found)} The target is {TARGET} ms. The dearest:")
    for name, milliseconds in found.modules[:10]:
        print(f"{milliseconds:8.1f}  {name}")
    brought = foreign()
    print(f"`import transept` brings in {', '.join(brought) or 'no framework and no driver'}.")
    return 1 if brought or found.total > TARGET else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
