"""The documentation: its examples run, its links lead somewhere, its tables name what the code has."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import transept
from transept import DBConnect, Registry, config, errors
from transept.adapters.aiosqlite import AiosqliteConfig
from transept.adapters.asyncmy import AsyncmyConfig
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.psycopg import PsycopgAsyncConfig, PsycopgSyncConfig
from transept.adapters.pymysql import PyMysqlConfig
from transept.adapters.sqlite import SqliteConfig
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.database import Databases
from transept.extensions import flask
from transept.extensions.litestar._config import LitestarKeys
from transept.sql.result import Result
from transept.sql.session import BlockingSQLSession, SQLSession
from transept.sql.settings import DriverSettings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
NOT_RUN = re.compile(r"<!-- not run: .+ -->")
LINK = re.compile(r"\[[^\]\[]+\]\(([^)\s]+)\)")
ROW = re.compile(r"\| `(\w+)` \| .*? \| (.*?) \| ")

SHARED = (config.DatabaseSettings, DriverSettings)  # their options are described once

every_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


class Line(NamedTuple):
    text: str
    language: str | None  # of the block that the line stands in; None outside of blocks
    runs: bool


def lines(page: Path) -> Iterator[Line]:
    """The page's lines; those of fences stand outside of blocks, as empty ones."""
    language, runs, before = None, True, ""
    for text in page.read_text("utf-8").splitlines():
        if text.startswith("```"):
            language = text.removeprefix("```") if language is None else None
            runs = not NOT_RUN.fullmatch(before)
            yield Line("", None, runs)
        else:
            yield Line(text, language, runs)
            before = text or before
    assert language is None, f"{page}: a block is not closed"


def script(page: Path, *, run: bool) -> str:
    """The page with nothing but its Python, each line where it was."""
    kept = (one.text if one.language == "python" and (one.runs or not run) else "" for one in lines(page))
    return "\n".join(kept) + "\n"


@every_page
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    compile(script(page, run=False), str(page), "exec")
    if not (code := script(page, run=True)).strip():
        return
    file = tmp_path / "page.py"
    file.write_text(code, "utf-8")
    command = [sys.executable, "-W", "error", str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, f"{page}\n{done.stderr}"
    assert "Exception ignored" not in done.stderr, f"{page}\n{done.stderr}"


@every_page
def test_python_stands_where_it_is_found(page: Path) -> None:
    assert not re.search(r"^[ >]+```python|^```py$", page.read_text("utf-8"), re.MULTILINE)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    text = "\n".join(one.text for one in lines(page) if one.language is None)
    for link in LINK.findall(text):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"


def test_every_page_is_on_the_map() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(index.read_text("utf-8"))}
    assert {page for page in PAGES if page.is_relative_to(index.parent) and page != index} <= linked


@pytest.mark.parametrize(
    ("heading", "classes"),
    [
        ("Every database", [config.DatabaseSettings]),
        ("SQLAlchemy databases", [SQLAlchemyAsyncConfig, SQLAlchemySyncConfig]),
        ("Raw databases", [DriverSettings]),
        ("Litestar", [LitestarKeys]),
        ("`AsyncpgConfig`", [AsyncpgConfig]),
        ("`PsycopgAsyncConfig` and `PsycopgSyncConfig`", [PsycopgAsyncConfig, PsycopgSyncConfig]),
        ("`AiosqliteConfig` and `SqliteConfig`", [AiosqliteConfig, SqliteConfig]),
        ("`AsyncmyConfig` and `PyMysqlConfig`", [AsyncmyConfig, PyMysqlConfig]),
        ("`EngineConfig`", [config.EngineConfig]),
        ("`AsyncSessionConfig` and `SyncSessionConfig`", [config.AsyncSessionConfig]),
    ],
)
def test_the_reference_has_every_option_with_its_default(heading: str, classes: list[Any]) -> None:
    described = dict(ROW.findall(sections(ROOT / "docs/reference/configuration.md")[heading]))
    for one in classes:
        common = {field.name for base in SHARED if one is not base and issubclass(one, base) for field in fields(base)}
        assert set(described) == {field.name for field in fields(one)} - common
    for field in fields(classes[0]):
        if field.name in described and field.default is not dataclasses.MISSING and not callable(field.default):
            default = "not given" if field.default is config.Empty else f"`{field.default!r}`"
            assert described[field.name].replace('"', "'") == default, field.name


def test_the_reference_has_every_option_of_a_dbconnect() -> None:
    described = dict(ROW.findall(sections(ROOT / "docs/reference/configuration.md")["`DBConnect`"]))
    common = {one.name for one in fields(config.DatabaseSettings)}
    options = [one for one in inspect.signature(DBConnect).parameters.values() if one.name not in common]
    defaults = {one.name: "needed" if one.default is one.empty else f"`{one.default!r}`" for one in options}
    assert described == defaults


def test_the_reference_has_every_error() -> None:
    text = (ROOT / "docs/reference/errors.md").read_text("utf-8")
    assert set(re.findall(r"^### `(\w+)`", text, re.MULTILINE)) == set(errors.__all__)


def test_the_reference_has_every_name() -> None:
    parts = sections(ROOT / "docs/reference/api.md")
    named = {name for heading, text in parts.items() if heading.startswith("`transept`") for name in first_words(text)}
    assert named == set(transept.__all__) - set(errors.__all__)


@pytest.mark.parametrize(
    ("heading", "classes"),
    [
        ("SQL-first sessions", [SQLSession, BlockingSQLSession]),
        ("`Result`", [Result]),
        ("`Registry`", [Registry]),
        ("`Transept` for Flask", [flask.Transept]),
    ],
)
def test_the_reference_has_every_member(heading: str, classes: list[type]) -> None:
    named = first_words(sections(ROOT / "docs/reference/api.md")[heading])
    for one in classes:
        inherited = dir(Databases) if issubclass(one, Databases) else []
        assert set(named) == {name for name in dir(one) if not name.startswith("_")} - set(inherited)


def first_words(text: str) -> list[str]:
    """The names that begin the rows of the tables."""
    return re.findall(r"^\| `(?:await )?(\w+)", text, re.MULTILINE)


def fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def headings(page: Path) -> list[str]:
    return [one.text.lstrip("#").strip() for one in lines(page) if one.language is None and one.text.startswith("#")]


def anchors(page: Path) -> set[str]:
    """The headings, as a link spells them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)}


def sections(page: Path) -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = re.split(r"^## (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
