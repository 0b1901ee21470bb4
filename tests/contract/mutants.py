"""Breaks the library on purpose, one plausible mistake at a time, and sees cases of the contract go red.

    python tests/contract/mutants.py [--check] [NAME...]

The mistakes are in `mutants.txt`: a name, the file, the cells of the matrix to look in, the cases that must find it,
and the change, written as a diff with `@@` between two places. Each is made in a copy of `src`, and every one of its
cases that applies in one of its cells must fail there; a case that passes has let the mistake through. The same cases
are run on the unharmed code first: a case that is red already proves nothing.

With `--check` nothing is run: it says, in a second or two, which mutants are out of date and which cases have none.

Exit code 1: a mutant survived, the code that it changes is no longer there, or a case of the contract has no mutant.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = "tests/contract/test_contract.py::test_contract"
WORKERS = 2
KILLED = "killed"


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    cells: tuple[str, ...]
    red: tuple[str, ...]
    edits: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, text: str) -> Mutant:
        name, file, cells, red, change = text.rstrip("\n").split("\n", 4)
        edits = tuple((side(hunk, "-"), side(hunk, "+")) for hunk in change.split("\n@@\n"))
        _, file = file.split(": ")
        return cls(name, file, tuple(cells.split()[1:]), tuple(red.split()[1:]), edits)

    def nodes(self) -> Iterator[str]:
        """Its cases in its cells, where they apply, as pytest names them."""
        from contract.cases import CASES
        from contract.test_contract import applies, cells

        cases = {case.name: case for case in CASES}
        for name, framework, family, engine, _ in cells():
            if name in self.cells:
                here = (cases[one] for one in self.red if one in cases)
                yield from (f"{name}-{case.name}" for case in here if applies(case, framework, family, engine))

    def changed(self, source: Path) -> str:
        """The file with the mistake in it. Raises LookupError where the code is not what it was."""
        text = (source / "transept" / self.file).read_text()
        for old, new in self.edits:
            if text.count(old) != 1:
                raise LookupError(f"found {text.count(old)} times in {self.file}:\n{old}")
            text = text.replace(old, new)
        compile(text, self.file, "exec")
        return text

    def out_of_date(self) -> Iterator[str]:
        """What it names that is not there, or says nothing: code, cells, cases."""
        try:
            self.changed(ROOT / "src")
        except (LookupError, OSError, SyntaxError) as error:
            yield str(error)
        runs = [node.rpartition("-") for node in self.nodes()]
        cells, cases = {cell for cell, *_ in runs}, {case for *_, case in runs}
        yield from (f"none of its cases applies in {cell}" for cell in self.cells if cell not in cells)
        yield from (f"{case} applies in none of its cells" for case in self.red if case not in cases)


def side(hunk: str, sign: str) -> str:
    """What the lines of a diff were, or what they become."""
    return "".join(f"{line[1:]}\n" for line in hunk.split("\n") if not line or line[0] in (" ", sign))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="say what is out of date, and run nothing")
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these mutants")
    options = parser.parse_args(arguments)
    mutants = [one for one in everyone() if not options.names or one.name in options.names]
    if unknown := set(options.names) - {one.name for one in mutants}:
        parser.error(f"no mutant is called {', '.join(sorted(unknown))}")
    wrong = out_of_date(mutants) + ([] if options.names else uncovered(mutants))
    if not options.check:
        if red := failing(ROOT / "src", {node for one in mutants for node in one.nodes()}):
            print("red without any mutant:", *sorted(red), sep="\n  ")
            return 1
        for one, outcome in outcomes(mutants):
            print(f"{one.name}: {outcome}", flush=True)
            if outcome != KILLED:
                wrong.append(f"{one.name}: {outcome}")
    fine = "all are up to date" if options.check else "all were killed"
    print(f"{len(mutants)} mutants", *(wrong or [fine]), sep="\n")
    return 1 if wrong else 0


def everyone() -> list[Mutant]:
    return [Mutant.read(text) for text in re.split(r"^== ", (HERE / "mutants.txt").read_text(), flags=re.M)[1:]]


def out_of_date(mutants: Iterable[Mutant]) -> list[str]:
    return [f"{one.name}: {what}" for one in mutants for what in one.out_of_date()]


def outcomes(mutants: list[Mutant]) -> Iterator[tuple[Mutant, str]]:
    """Several at a time, but for MariaDB: there a backup's lock stops the commits of all."""
    alone = [one for one in mutants if any("mariadb" in cell for cell in one.cells)]
    for group, workers in (([one for one in mutants if one not in alone], WORKERS), (alone, 1)):
        with ThreadPoolExecutor(workers) as pool:
            yield from zip(group, pool.map(outcome_of, group), strict=True)


def outcome_of(one: Mutant) -> str:
    nodes = set(one.nodes())
    with tempfile.TemporaryDirectory(prefix="transept-mutant-") as folder:
        source = Path(folder, "src")
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        try:
            text = one.changed(source)
        except LookupError:
            return "NO MATCH"
        (source / "transept" / one.file).write_text(text)
        missed = sorted(nodes - failing(source, nodes))
    return KILLED if nodes and not missed else f"SURVIVED {' '.join(missed)}"


def failing(source: Path, nodes: Iterable[str]) -> set[str]:
    """Which of these cases fail over this source."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=native", "-rfE", "--timeout=10"]
    variables = {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
    done = subprocess.run(
        [*command, *(f"{TESTS}[{node}]" for node in sorted(nodes))],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run the cases:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return set(re.findall(rf"^(?:FAILED|ERROR) {re.escape(TESTS)}\[(.+?)\]", done.stdout, re.MULTILINE))


def uncovered(mutants: list[Mutant]) -> list[str]:
    """The cases that none of these mutants reddens."""
    from contract.cases import CASES

    covered = {node.rpartition("-")[2] for one in mutants for node in one.nodes()}
    return [f"no mutant for {case.name}" for case in CASES if case.name not in covered]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    raise SystemExit(main(sys.argv[1:]))
