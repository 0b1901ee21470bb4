"""Commands and the shell: an app context is kept when the program says that all went well."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from flask import Blueprint, current_app
from flask.cli import with_appcontext
from flask_site import Held, Site
from held import File, Postgres
from sqlalchemy.exc import IntegrityError

from transept import doom, unit_of_work

PROGRAM = """
import os, sys
import click
from flask import Flask, current_app
from sqlalchemy import text
from transept.extensions.flask import SQLAlchemySyncConfig, Transept

app = Flask("program")
db = Transept(SQLAlchemySyncConfig(connection_string=os.environ["HELD"], commit_mode="autocommit"), app)


def add(v):
    db.get_session().execute(text("INSERT INTO held VALUES (:v)"), {"v": v})


@app.shell_context_processor
def names():
    return {"add": add}


@app.cli.command()
@click.argument("how")
@click.pass_context
def work(ctx, how):
    add(1)
    print(f"{how} in {current_app.name}")
    if how == "exit0":
        sys.exit(0)
    if how == "exit1":
        sys.exit(1)
    if how == "ctx0":
        ctx.exit(0)
    if how == "ctx1":
        ctx.exit(1)
    if how == "abort":
        ctx.abort()
    if how == "usage":
        raise click.UsageError("not so")
    if how == "raise":
        raise ValueError("in the command")
    if how == "violate":
        db.get_session().execute(text("INSERT INTO child VALUES (99)"))
    if how == "interrupt":
        raise KeyboardInterrupt
"""


def exit_0(ctx: click.Context) -> None:
    sys.exit(0)


def exit_1(ctx: click.Context) -> None:
    sys.exit(1)


def exit_with_a_message(ctx: click.Context) -> None:
    sys.exit("went wrong")


def ctx_exit_0(ctx: click.Context) -> None:
    ctx.exit(0)


def ctx_exit_1(ctx: click.Context) -> None:
    ctx.exit(1)


def abort(ctx: click.Context) -> None:
    raise click.Abort


def misuse(ctx: click.Context) -> None:
    raise click.UsageError("not so")


def interrupt(ctx: click.Context) -> None:
    raise KeyboardInterrupt


def fail(ctx: click.Context) -> None:
    raise ValueError("in the command")


def end(ctx: click.Context) -> str:
    return "a value"


ENDS: list[tuple[Callable[[click.Context], Any], int, list[int]]] = [
    (end, 0, [1]),
    (exit_0, 0, [1]),
    (exit_1, 1, []),
    (exit_with_a_message, 1, []),
    (ctx_exit_0, 0, [1]),
    (ctx_exit_1, 1, []),
    (abort, 1, []),
    (misuse, 2, []),
    (interrupt, 1, []),
    (fail, 1, []),
]


@pytest.mark.parametrize(("ending", "code", "kept"), ENDS)
def test_a_command_keeps_when_it_ends_well(site: Site, ending: Any, code: int, kept: list[int]):
    @site.app.cli.command()
    @click.pass_context
    def work(ctx: click.Context) -> Any:
        assert current_app.name == "site"
        site.add(1)
        return ending(ctx)

    result = site.app.test_cli_runner().invoke(args=["work"])
    assert (result.exit_code, site.held()) == (code, kept)


@pytest.mark.parametrize(("ending", "code", "kept"), ENDS)
def test_a_command_of_a_blueprint_keeps_when_it_ends_well(site: Site, ending: Any, code: int, kept: list[int]):
    blueprint = Blueprint("some", __name__)

    @blueprint.cli.command()
    @click.pass_context
    def work(ctx: click.Context) -> Any:
        site.add(1)
        return ending(ctx)

    site.app.register_blueprint(blueprint)
    result = site.app.test_cli_runner().invoke(args=["some", "work"])
    assert (result.exit_code, site.held()) == (code, kept)


def test_a_command_whose_commit_fails_has_failed(site: Site):
    @site.app.cli.command()
    def work() -> None:
        site.add(1)
        site.violate()

    result = site.app.test_cli_runner().invoke(args=["work"])
    assert (type(result.exception), result.exit_code, site.held()) == (IntegrityError, 1, [])


def test_what_a_command_does_when_it_is_closed_has_a_context_of_its_own(site: Site):
    def at_last() -> None:
        with site.app.app_context():
            site.add(2)

    @site.app.cli.command(with_appcontext=False)
    @click.pass_context
    def work(ctx: click.Context) -> None:
        ctx.call_on_close(at_last)
        ctx.with_resource(site.app.app_context())
        site.add(1)
        ctx.exit(3)

    assert (site.app.test_cli_runner().invoke(args=["work"]).exit_code, site.held()) == (3, [2])


def test_a_command_that_is_doomed_keeps_nothing(site: Site):
    @site.app.cli.command()
    def work() -> None:
        site.add(1)
        doom("only tried")

    assert (site.app.test_cli_runner().invoke(args=["work"]).exit_code, site.held()) == (0, [])


def test_a_command_commits_along_the_way(site: Site):
    @site.app.cli.command()
    def work() -> None:
        site.add(1)
        site.db.get_session().commit()
        assert site.held() == [1]
        site.add(2)
        raise ValueError("later")

    assert (site.app.test_cli_runner().invoke(args=["work"]).exit_code, site.held()) == (1, [1])


def test_a_block_inside_a_command_undoes_itself_alone(site: Site):
    @site.app.cli.command()
    def work() -> None:
        site.add(1)
        with pytest.raises(ValueError, match="block"), unit_of_work():
            site.add(2)
            raise ValueError("block")

    assert (site.app.test_cli_runner().invoke(args=["work"]).exit_code, site.held()) == (0, [1])


def test_a_command_that_calls_another_shares_its_context(site: Site):
    @click.command()
    @with_appcontext
    def inner() -> None:
        site.add(2)

    @site.app.cli.command()
    @click.pass_context
    def work(ctx: click.Context) -> None:
        site.add(1)
        ctx.invoke(inner)
        assert site.held() == []

    assert (site.app.test_cli_runner().invoke(args=["work"]).exit_code, site.held()) == (0, [1, 2])


def test_a_command_without_an_app_context_may_push_one(site: Site):
    @site.app.cli.command(with_appcontext=False)
    def work() -> None:
        with site.app.app_context():
            site.add(1)

    assert (site.app.test_cli_runner().invoke(args=["work"]).exit_code, site.held()) == (0, [1])


def test_a_command_that_calls_the_app_is_not_touched_by_it(site: Site):
    site.view(lambda: ("", 409), endpoint="view")

    @site.app.cli.command()
    def work() -> None:
        session = site.db.get_session()
        assert site.post().status_code == 409
        assert site.db.get_session() is session
        site.add(1)

    assert (site.app.test_cli_runner().invoke(args=["work"]).exit_code, site.held()) == (0, [1])


def test_two_commands_are_two_units(site: Site):
    @site.app.cli.command()
    def work() -> None:
        site.add(site.db.get_session().query(Held).count())

    runner = site.app.test_cli_runner()
    assert [runner.invoke(args=["work"]).exit_code for _ in range(3)] == [0, 0, 0]
    assert site.held() == [0, 1, 2]


# The program itself.


@pytest.fixture
def flask_program(tables: File | Postgres, tmp_path: Path) -> Any:
    """Run `python -m flask` with these arguments over the tests' tables."""
    (tmp_path / "program.py").write_text(PROGRAM)
    url = tables.url("pysqlite") if isinstance(tables, File) else tables.server.url("psycopg")

    def run(*arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "flask", "--app", "program", *arguments]
        environ = {**os.environ, "HELD": url}
        return subprocess.run(
            command, cwd=tmp_path, env=environ, input=said, capture_output=True, text=True, timeout=50, check=False
        )

    return run


@pytest.mark.parametrize(
    ("how", "code", "kept"),
    [
        ("end", 0, [1]),
        ("exit0", 0, [1]),
        ("exit1", 1, []),
        ("ctx0", 0, [1]),
        ("ctx1", 1, []),
        ("abort", 1, []),
        ("usage", 2, []),
        ("raise", 1, []),
        ("violate", 1, []),
        ("interrupt", 1, []),
    ],
)
def test_flasks_program_keeps_what_a_command_ends_well_with(
    tables: File | Postgres, flask_program: Any, how: str, code: int, kept: list[int]
):
    done = flask_program("work", how)
    assert (done.returncode, tables.held()) == (code, kept), done.stderr
    assert done.stdout.startswith(f"{how} in program")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("add(1)\n", [1]),
        ("add(1)\nexit()\n", [1]),
        ("add(1)\nexit(0)\n", [1]),
        ("add(1)\nimport sys; sys.exit(1)\n", []),
        ("add(1)\n1 / 0\nadd(2)\n", [1, 2]),
        ("add(1)\ndb.get_session().rollback()\nadd(2)\n", [2]),
    ],
)
def test_the_shell_keeps_when_it_is_left(tables: File | Postgres, flask_program: Any, said: str, kept: list[int]):
    done = flask_program("shell", said=f"from program import db\n{said}")
    assert tables.held() == kept, done.stderr


def test_the_shell_that_cannot_commit_says_so(tables: File | Postgres, flask_program: Any):
    said = "from program import db, text\nadd(1)\nx = db.get_session().execute(text('INSERT INTO child VALUES (99)'))\n"
    done = flask_program("shell", said=said)
    assert (done.returncode, tables.held()) == (1, [])
    assert "IntegrityError" in done.stderr
