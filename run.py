#!/usr/bin/env python3
"""Runs the project's demo, tests, checks and version matrix, from a fresh clone and from any folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / os.environ.get("UV_PROJECT_ENVIRONMENT", ".venv")
BIN = "Scripts" if os.name == "nt" else "bin"
FLASK = ("library",)  # of the examples; the others are served by uvicorn
HELP = """usage: python3 run.py COMMAND [ARGUMENT...]

  demo     run examples/orders/demo.py
  example  serve an app of examples/: NAME, then arguments of its server, such as --port 8001
  test     run the tests with pytest; --nothing-left-out also starts missing servers and fails on a skipped test
  check    formatting, lint, types and import layers
  bench    measure what requests and SQL-first sessions cost, here and elsewhere; or one of them: request, sql
  matrix   run the tests against the oldest and the newest versions that pyproject.toml allows (needs uv)

Arguments are passed on, and paths among them start at the project's folder. The environment is made on first use.
"""


def main(arguments: list[str]) -> int:
    commands = {"demo": demo, "example": example, "test": test, "check": check, "bench": bench, "matrix": matrix}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in commands:
        print(f"run.py: unknown command {name!r}; there are {', '.join(commands)}", file=sys.stderr)
        return 2
    return commands[name](rest)


def demo(arguments: list[str]) -> int:
    environment("--extra", "demo")
    return run("python", "examples/orders/demo.py", *arguments)


def example(arguments: list[str]) -> int:
    names = sorted(path.parent.name for path in ROOT.glob("examples/*/app.py"))
    if not arguments or arguments[0] not in names:
        print(f"run.py: example needs a name; there are {', '.join(names)}", file=sys.stderr)
        return 2
    name, *rest = arguments
    for extra in ("demo", "fastapi", "litestar", "flask"):
        environment("--extra", extra)
    if name in FLASK:
        return run("python", "-m", "flask", "--app", f"examples/{name}/app", "run", *rest)
    return run("python", "-m", "uvicorn", "--app-dir", "examples", f"{name}.app:app", *rest)


def test(arguments: list[str]) -> int:
    environment("--group", "test")
    return run("python", "-m", "pytest", *arguments)


def check(arguments: list[str]) -> int:
    if arguments:
        print(f"run.py: check takes no arguments, but got {' '.join(arguments)}", file=sys.stderr)
        return 2
    environment("--group", "dev")
    steps = ["ruff format --check .", "ruff check .", "mypy", "pyright", "lint-imports"]
    failed = []
    for step in steps:
        say(step)
        if run(*step.split()):
            failed.append(step)
    say(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


def bench(arguments: list[str]) -> int:
    names = ["request", "sql"]
    if arguments and arguments[0] not in names:
        print(f"run.py: bench needs a name before {arguments[0]!r}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    environment("--group", "bench")
    if arguments:
        return run("python", f"bench/{arguments[0]}.py", *arguments[1:])
    return max([run("python", f"bench/{name}.py") for name in names])


def matrix(arguments: list[str]) -> int:
    if not shutil.which("uv"):
        print("run.py: matrix needs uv, which resolves to the oldest versions; install it first", file=sys.stderr)
        return 2
    oldest, *_, newest = claimed_pythons()
    results = [
        matrix_row("oldest", oldest, "lowest-direct", arguments),
        matrix_row("newest", newest, "highest", arguments),
    ]
    for row, code in results:
        say(f"{'failed' if code else 'passed'}: {row}")
    return 1 if any(code for _, code in results) else 0


def matrix_row(name: str, python: str, resolution: str, arguments: list[str]) -> tuple[str, int]:
    """Tests in an environment of its own; the lock file plays no part, so that it is neither used nor rewritten."""
    with tempfile.TemporaryDirectory(prefix="transept-matrix-") as folder:
        place = Path(folder, "venv")
        row = f"{name} dependencies on Python {python}"
        if call("uv", "venv", "--quiet", "--python", python, str(place)):
            row = f"{name} dependencies on Python {sys.version.split()[0]}, because {python} COULD NOT BE HAD"
            call("uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(place))
        say(row)
        install = ("uv", "pip", "install", "--python", str(place), "--resolution", resolution)
        # extras that the group asks for through the project's own name would not count as direct: ask for them here
        code = call(*install, "--editable", ".", "-r", "pyproject.toml", "--all-extras", "--group", "test")
        return row, code or run("python", "-m", "pytest", "-p", "no:cacheprovider", *arguments, place=place)


def claimed_pythons() -> list[str]:
    """Versions of Python in pyproject.toml's classifiers, oldest first."""
    import tomllib

    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    versions = [c.rpartition(" ")[2] for c in classifiers if c.startswith("Programming Language :: Python :: 3.")]
    return sorted(versions, key=lambda version: int(version.partition(".")[2]))


def environment(kind: str, name: str) -> None:
    """Installs the group or extra into the project's environment, which keeps what it already has."""
    if shutil.which("uv"):
        code = call("uv", "sync", "--quiet", "--locked", "--inexact", "--no-default-groups", kind, name)
    else:
        code = installed_by_pip(kind, name)
    if code:
        raise SystemExit(f"run.py: the environment could not be made ({kind} {name})")


def installed_by_pip(kind: str, name: str) -> int:
    stamp = VENV / f"installed{kind}-{name}"
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return 0
    if not (VENV / BIN / "python").exists() and not (VENV / BIN / "python.exe").exists():
        say(f"making {VENV}")
        venv.create(VENV, symlinks=os.name != "nt")
    what = ("--editable", ".", "--group", name) if kind == "--group" else ("--editable", f".[{name}]")
    pip = ("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    code = (
        run("python", "-m", "ensurepip", "--upgrade", "--default-pip", quiet=True)
        or run(*pip, "pip>=25.1")  # the first that knows dependency groups
        or run(*pip, *what)
    )
    if not code:
        stamp.write_text(digest)
    return code


def run(program: str, *arguments: str, place: Path = VENV, quiet: bool = False) -> int:
    """Runs a program of the environment, as if that were activated."""
    path = f"{place / BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    found = shutil.which(program, path=str(place / BIN)) or program
    return call(found, *arguments, quiet=quiet, VIRTUAL_ENV=str(place), PATH=path)


def call(*command: str, quiet: bool = False, **variables: str) -> int:
    inherited = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONHOME")}
    output = subprocess.DEVNULL if quiet else None
    try:
        process = subprocess.Popen(command, cwd=ROOT, env=inherited | variables, stdout=output)
    except FileNotFoundError:
        print(f"run.py: {command[0]} was not found", file=sys.stderr)
        return 127
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the program has been interrupted as well, and cleans up


def say(text: str) -> None:
    print(f"--- {text}", flush=True)


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - an older one may well start this file
        raise SystemExit("run.py: Python 3.11 or newer is needed")
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
