"""The benchmark runs to its end with whatever is installed. How long anything took is not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from servers.server import Server

BENCH = Path(__file__).parents[1] / "bench"
TITLES = [
    "bare Starlette",
    "SQLAlchemy by hand",
    "Transept, get_session()",
    "Transept, db_session()",
    "Advanced Alchemy",
    "context-async-sqlalchemy, ASGI",
    "context-async-sqlalchemy, Starlette",
    "SQLSpec, asyncpg",
    "bare Litestar",
    "Transept, Litestar",
    "Advanced Alchemy, Litestar",
    "bare Flask",
    "SQLAlchemy by hand, Flask",
    "Transept, Flask",
    "Transept, SQL-first, Flask",
    "Advanced Alchemy, Flask",
    "Flask-SQLAlchemy",
    "SQLSpec, Flask",
]

SQL_AIMS = [
    "one SELECT, asyncpg: as long as by hand",
    "one INSERT, asyncpg: as long as by hand",
    "A text that was seen before, sqlite3: over by hand",
    "A text that was never seen, sqlite3: over by hand",
    "20 tuples of sqlite3 to msgspec structs",
    "20 records of asyncpg to msgspec structs",
    "a stream of 3,000 rows, sqlite3: memory grows by",
    "a stream of 3,000 rows, asyncpg: memory grows by",
]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / script), *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=50, check=False)


def test_every_contender_has_its_line(postgres: Server, tmp_path: Path) -> None:
    """With its times, or with the reason why there are none; on the page as in the terminal."""
    page = tmp_path / "cost.md"
    done = run("request.py", "--rounds", "1", "--calls", "2", "--url", postgres.dsn, "--markdown", str(page))
    assert (done.returncode, done.stderr) == (0, "")
    assert [title for title in TITLES if f"\n{title}" not in done.stdout] == []
    for path in (
        "/nodb",
        "/read",
        "/write",
        "/litestar-nodb",
        "/litestar-session",
        "/flask-nodb",
        "/flask-read",
        "/flask-write",
    ):
        assert f"\n| {path} | " in page.read_text("utf-8")
    assert postgres.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'transept_bench_%'") == []


def test_transept_and_the_hand_keep_every_promise(postgres: Server) -> None:
    done = run("request.py", "--rounds", "1", "--calls", "1", "--url", postgres.dsn, "--path", "/write")
    promises = {line[:35].strip(): line[35:].split() for line in done.stdout.partition("What holds")[2].splitlines()}
    assert promises["SQLAlchemy by hand"] == promises["Transept, get_session()"] == ["yes", "yes", "yes"]


def test_one_framework_can_be_measured_alone(postgres: Server) -> None:
    """Without the apps of the other."""
    done = run("request.py", "--rounds", "1", "--calls", "1", "--url", postgres.dsn, "--path", "/litestar-session")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nTransept, Litestar " in done.stdout
    assert "by hand" not in done.stdout
    assert "What holds" not in done.stdout


def test_over_flask_transept_keeps_every_promise(postgres: Server) -> None:
    done = run("request.py", "--rounds", "1", "--calls", "1", "--url", postgres.dsn, "--path", "/flask-write")
    promises = {line[:30].strip(): line[30:].split() for line in done.stdout.partition("What holds")[2].splitlines()}
    for title in ("SQLAlchemy by hand, Flask", "Transept, Flask", "Transept, SQL-first, Flask"):
        assert promises[title] == ["yes", "yes", "yes"]


def test_sql_first_sessions_are_measured_from_a_request_to_a_stream(postgres: Server, tmp_path: Path) -> None:
    """Each aim has its line, on the page as in the terminal; whether it is met is not looked at here."""
    page = tmp_path / "cost-sql.md"
    few = ("--rounds", "1", "--calls", "2", "--rows", "20", "--streamed", "3000")
    done = run("sql.py", *few, "--url", postgres.dsn, "--markdown", str(page))
    assert (done.returncode, done.stderr) == (0, "")
    for text in (done.stdout, page.read_text("utf-8")):
        assert [aim for aim in SQL_AIMS if aim not in text] == []
        assert "SQLSpec" in text
    assert postgres.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'transept_bench_%'") == []


def test_sections_of_the_sql_measurement_can_be_asked_for(postgres: Server) -> None:
    arguments = ("--only", "statements", "--rounds", "2", "--calls", "1", "--clock", "cpu", "--url", postgres.dsn)
    done = run("sql.py", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sqlite3 by hand" in done.stdout
    assert "asyncpg by hand" not in done.stdout


def test_options_for_the_measurements_need_to_know_which_one() -> None:
    """They have different ones, and each writes a page of its own."""
    command = [sys.executable, str(BENCH.parent / "run.py"), "bench", "--rounds", "3"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=50, check=False)
    told = "run.py: bench needs a name before '--rounds'; there are request, sql\n"
    assert (done.returncode, done.stderr) == (2, told)


def test_a_profile_names_the_gate(postgres: Server) -> None:
    done = run("request.py", "--profile", "transept", "/write", "--calls", "5", "--url", postgres.dsn)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gate/asgi.py" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "nothing"], "argument --only: invalid choice: 'nothing'"),
        (["--streamed", "-1"], "argument --streamed: a whole number above 0 is needed, not '-1'"),
        (["--markdown", "no/such/folder/cost.md"], "argument --markdown: there is no folder no/such/folder"),
        (["--url", "postgresql://me:secret@127.0.0.1:1/x"], "no PostgreSQL at postgresql://me:***@127.0.0.1:1/x"),
    ],
)
def test_a_bad_option_of_the_sql_measurement_is_named(arguments: list[str], complaint: str) -> None:
    done = run("sql.py", *arguments)
    assert done.returncode != 0
    assert complaint in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rounds", "0"], "argument --rounds: a whole number above 0 is needed, not '0'"),
        (["--only", "nobody"], "argument --only: no contender 'nobody'; there are bare, by-hand, "),
        (["--path", "/nowhere"], "argument --path: invalid choice: '/nowhere'"),
        (["--profile", "bare", "/read"], "argument --profile: bare has no path '/read'; there are /nodb"),
        (["--markdown", "no/such/folder/cost.md"], "argument --markdown: there is no folder no/such/folder"),
        (["--url", "mysql://root@127.0.0.1"], "not a PostgreSQL URL"),
        (["--url", "postgresql://me:secret@127.0.0.1:1/x"], "no PostgreSQL at postgresql://me:***@127.0.0.1:1/x"),
    ],
)
def test_a_bad_option_is_named(arguments: list[str], complaint: str) -> None:
    """In the last line, without a traceback and without a password."""
    done = run("request.py", *arguments)
    assert done.returncode != 0
    assert complaint in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_the_imports_are_listed() -> None:
    done = run("imports.py", "--runs", "1")
    assert "`import transept.extensions.starlette` adds " in done.stdout
    assert "`import transept` brings in no framework and no driver." in done.stdout
