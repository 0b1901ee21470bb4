"""The matrix: every case in every cell, printed at the end of the run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

OUTCOMES: dict[tuple[str, str], str] = {}
NODE = re.compile(r"test_contract\[(?P<cell>.+)-(?P<case>\w+)\]$")
SERVED = (
    "The servers' columns (`flask-gunicorn-sync`, `flask-gunicorn-gthread`, `flask-waitress`) are asked over a socket: "
    "what the client is told is read there, and the database is looked at where the app hands each message over to the "
    "server. A client that leaves half way is not in them, because a server notices that only when it writes again: "
    "`tests/flask/test_flask_servers.py` has it, and gunicorn with its master process, too. In `flask-async` a cursor "
    "that an `async def` view has opened cannot be read by its body, which is plain code."
)
SIGNS = {"passed": "+", "failed": "X", "skipped": "?"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", metavar="FILE", help="also write the contract matrix to this Markdown file")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    found = NODE.search(report.nodeid)
    if found and (report.when == "call" or report.outcome != "passed"):
        OUTCOMES[found["cell"], found["case"]] = report.outcome


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not OUTCOMES:
        return
    terminalreporter.section("the contract")
    for line in plain():
        terminalreporter.write_line(line)
    if target := config.getoption("--matrix", default=None):
        Path(target).write_text(markdown())


def axes() -> tuple[list[str], list[str]]:
    from contract.cases import CASES
    from contract.test_contract import cells

    ran_cells = {cell for cell, _ in OUTCOMES}
    ran_cases = {case for _, case in OUTCOMES}
    return [name for name, *_ in cells() if name in ran_cells], [one.name for one in CASES if one.name in ran_cases]


def plain() -> list[str]:
    columns, rows = axes()
    width = max(2, len(str(len(columns))))
    numbers = [f"{number:0{width}}" for number in range(1, len(columns) + 1)]
    lines = [f"{number} {name}" for number, name in zip(numbers, columns, strict=True)]
    lines += ["+ holds   X does not   ? was not run   . does not apply", ""]
    lines += [" ".join(digits) for digits in zip(*numbers, strict=True)]
    for row in rows:
        signs = (SIGNS[OUTCOMES[cell, row]] if (cell, row) in OUTCOMES else "." for cell in columns)
        lines.append(f"{' '.join(signs)}  {row.replace('_', ' ')}")
    held = sum(outcome == "passed" for outcome in OUTCOMES.values())
    return [*lines, "", f"{held} of {len(OUTCOMES)} hold"]


def markdown() -> str:
    columns, rows = axes()
    words = {"+": "✓", "X": "**✗**", "?": "?", ".": "·"}
    head = "| what holds | " + " | ".join(name.replace("/", " ") for name in columns) + " |"
    lines = [
        "# The contract, cell by cell",
        "",
        "Written by `python3 run.py test tests/contract --matrix docs/reference/contract.md`. "
        "✓ holds, ✗ does not, · does not apply there.",
        "",
        SERVED,
        "",
        head,
        "|---|" + ":-:|" * len(columns),
    ]
    for row in rows:
        signs = (SIGNS[OUTCOMES[cell, row]] if (cell, row) in OUTCOMES else "." for cell in columns)
        lines.append(f"| {row.replace('_', ' ')} | " + " | ".join(words[sign] for sign in signs) + " |")
    return "\n".join(lines) + "\n"
