"""The app of `test_flask_servers.py`, as a server imports it. What it is over, the environment says."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Flask, Response
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.sqlite import SqliteConfig
from transept.errors import SQLError
from transept.extensions.flask import EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig, Transept

KIND, URL, NAME = (os.environ[f"SERVED_{word}"] for word in ("KIND", "URL", "NAME"))
CHUNK = b"x" * 100_000
MODE: Any = {"commit_mode": "autocommit"}


def database() -> Any:
    named = {"application_name": NAME}
    if KIND == "sync":
        return SQLAlchemySyncConfig(connection_string=URL, engine_config=EngineConfig(connect_args=named), **MODE)
    if KIND == "async":
        options = EngineConfig(connect_args={"server_settings": named})
        return SQLAlchemyAsyncConfig(connection_string=URL, engine_config=options, **MODE)
    if KIND == "raw":
        return AsyncpgConfig(pool_config={"dsn": URL, "server_settings": named}, **MODE)
    return SqliteConfig(pool_config={"database": URL}, **MODE)


def run(sql: str) -> Any:
    return db.get_session().execute(text(sql) if KIND in ("sync", "async") else sql)


def insert(v: int) -> None:
    run(f"INSERT INTO held VALUES ({v})")


def violate() -> None:
    """From here on the COMMIT fails, and nothing before it does."""
    run("INSERT INTO child VALUES (99)")


app = Flask(__name__)
handled = Blueprint("handled", __name__, url_prefix="/handled")
db = Transept(database(), app)


@app.get("/")
def ready() -> str:
    return str(os.getpid())


@app.post("/write/<int:v>/<int:status>")
def write(v: int, status: int) -> tuple[str, int]:
    insert(v)
    return "written", status


@app.post("/raise/<int:v>")
def fail(v: int) -> str:
    insert(v)
    raise RuntimeError("the view failed")


@app.post("/late/<int:v>")
@handled.post("/late/<int:v>")
def late(v: int) -> str:
    insert(v)
    violate()
    return "written"


@handled.errorhandler(DBAPIError)
@handled.errorhandler(SQLError)
def too_late(error: Exception) -> tuple[str, int]:
    return type(error).__name__, 409


@app.post("/stream")
def stream() -> Response:
    def rows() -> Iterator[bytes]:
        for v in (1, 2, 3):
            insert(v)
            yield b"%d" % v

    return Response(rows())


@app.post("/stream/late", defaults={"length": None})
@app.post("/stream/late/<int:length>")
def late_stream(length: int | None) -> Response:
    def rows() -> Iterator[bytes]:
        insert(1)
        yield b"abc"
        insert(2)
        violate()
        yield b"def"

    response = Response(rows())
    if length is not None:
        response.content_length = length
    return response


@app.post("/stream/endless")
def endless() -> Response:
    def rows() -> Iterator[bytes]:
        try:
            for v in itertools.count(1):
                insert(v)
                yield CHUNK
        finally:
            insert(-1)

    return Response(rows())


app.register_blueprint(handled)

if os.environ.get("SERVED_FORKS"):  # the database is used before the server forks
    with app.app_context():
        run("SELECT count(*) FROM held")
