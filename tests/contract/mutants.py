"""Breaks the library on purpose, one plausible mistake at a time, and sees cases of the contract go red.

    python tests/contract/mutants.py [NAME...]

The mistakes are in `mutants.txt`: a name, the file, the cells of the matrix to look in, the cases that must find it,
and the change, written as a diff with `@@` between two places. Each is made in a copy of `src`, and every one of its
cases that applies in one of its cells must fail there; a case that passes has let the mistake through. The same cases
are run on the unharmed code first: a case that is red already proves nothing.

Exit code 1: a mutant survived, the code that it changes is no longer there, or a case of the contract has no mutant.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
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
                yield from (f"{name}-{one}" for one in self.red if applies(cases[one], framework, family, engine))

    def make(self, source: Path) -> None:
        """Raises LookupError where the code is not what it was."""
        file = source / "transept" / self.file
        text = file.read_text()
        for old, new in self.edits:
            if text.count(old) != 1:
                raise LookupError(f"found {text.count(old)} times in {self.file}:\n{old}")
            text = text.replace(old, new)
        compile(text, self.file, "exec")
        file.write_text(text)


def side(hunk: str, sign: str) -> str:
    """What the lines of a diff were, or what they become."""
    return "".join(f"{line[1:]}\n" for line in hunk.split("\n") if not line or line[0] in (" ", sign))


def main(names: Collection[str]) -> int:
    everyone = [Mutant.read(text) for text in re.split(r"^== ", (HERE / "mutants.txt").read_text(), flags=re.M)[1:]]
    chosen = [one for one in everyone if not names or one.name in names]
    if unknown := set(names) - {one.name for one in chosen}:
        print(f"no mutant is called {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    if red := failing(ROOT / "src", {node for one in chosen for node in one.nodes()}):
        print("red without any mutant:", *sorted(red), sep="\n  ")
        return 1
    wrong = [] if names else [f"no mutant for {case}" for case in uncovered(everyone)]
    for one, outcome in outcomes(chosen):
        print(f"{one.name}: {outcome}", flush=True)
        if outcome != KILLED:
            wrong.append(f"{one.name}: {outcome}")
    print(f"{len(chosen)} mutants", *(wrong or ["all were killed"]), sep="\n")
    return 1 if wrong else 0


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
            one.make(source)
        except LookupError as error:
            return f"NO MATCH: {error}"
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
    """The cases that no mutant reddens."""
    from contract.cases import CASES

    covered = {node.rpartition("-")[2] for one in mutants for node in one.nodes()}
    return [case.name for case in CASES if case.name not in covered]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    raise SystemExit(main(sys.argv[1:]))
