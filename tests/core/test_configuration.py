"""Settings are checked when they are written."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from transept import ImproperConfigurationError, Registry
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.sqlite import SqliteConfig
from transept.alchemy import EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig, SyncSessionConfig


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SQLAlchemySyncConfig(conection_string="sqlite://"), ["'conection_string'", "'connection_string'?"]),
        (lambda: EngineConfig(pool_sise=5), ["EngineConfig", "'pool_sise'", "'pool_size'?"]),
        (lambda: SyncSessionConfig(autoflsh=True), ["'autoflsh'", "'autoflush'?"]),
        (lambda: SQLAlchemySyncConfig(), ["One of 'connection_string'", "must be provided"]),
        (
            lambda: SQLAlchemySyncConfig(connection_string="sqlite://", engine_instance=create_engine("sqlite://")),
            ["Only one of 'connection_string' or 'engine_instance' can be provided."],
        ),
        (
            lambda: SQLAlchemySyncConfig(connection_string="sqlite://", engine_config=EngineConfig(url="sqlite://")),
            ["Only one of", "EngineConfig(url=...)"],
        ),
        (lambda: SQLAlchemySyncConfig(connection_string="nonsense"), ["'nonsense'", "not a database URL"]),
        (
            lambda: SQLAlchemySyncConfig(connection_string="sqlite+aiosqlite://"),
            ["async driver", "SQLAlchemyAsyncConfig"],
        ),
        (lambda: SQLAlchemyAsyncConfig(connection_string="sqlite://"), ["sync driver", "SQLAlchemySyncConfig"]),
        (lambda: SQLAlchemyAsyncConfig(connection_string="postgresql+nosuch://u:secret@h/d"), ["u:***@h"]),
        (lambda: SQLAlchemySyncConfig(connection_string="sqlite://", commit_mode="auto"), ["commit_mode='auto'"]),
        (lambda: SQLAlchemySyncConfig(connection_string="sqlite://", bind_key=""), ["bind_key=''"]),
        (lambda: SQLAlchemySyncConfig(connection_string="sqlite://", bind_key=3), ["bind_key=3"]),
        (
            lambda: SQLAlchemySyncConfig(
                connection_string="sqlite://", engine_config=EngineConfig(isolation_level="AUTOCOMMIT")
            ),
            ["AUTOCOMMIT", "commit_mode="],
        ),
        (lambda: AsyncpgConfig(commit_mode="auto"), ["AsyncpgConfig: commit_mode='auto'"]),
        (lambda: AsyncpgConfig(extra_commit_statuses=5), ["AsyncpgConfig: extra_commit_statuses=5"]),
        (lambda: AsyncpgConfig(bind_key=5), ["AsyncpgConfig: bind_key=5", "such as 'default'"]),
        (lambda: AsyncpgConfig(session_key=5), ["AsyncpgConfig: session_key=5", "such as 'db_session'"]),
        (lambda: AsyncpgConfig(pool_key=5), ["AsyncpgConfig: pool_key=5", "such as 'db_pool'"]),
        (lambda: Registry().add_config(AsyncpgConfig), ["AsyncpgConfig is the class", "AsyncpgConfig(...)"]),
        (lambda: Registry.of(AsyncpgConfig), ["AsyncpgConfig is the class", "AsyncpgConfig(...)"]),
        (lambda: Registry().get(), ["no database yet", "add_config(...)"]),
        (lambda: SqliteConfig(), ["SqliteConfig", "'database'"]),
        (lambda: AsyncpgConfig(pool_config="postgresql://"), ["pool_config='postgresql://'"]),
        (lambda: Registry.of([]), ["at least one database"]),
        (lambda: Registry.of(["sqlite://"]), ["'sqlite://'", "SQLAlchemyAsyncConfig"]),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(make, words):
    with pytest.raises(ImproperConfigurationError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)


def test_names_of_sessions_follow_from_the_bind_key():
    assert SQLAlchemySyncConfig(connection_string="sqlite://").session_key == "db_session"
    assert SQLAlchemySyncConfig(connection_string="sqlite://", bind_key="x").session_key == "x_session"
    assert SQLAlchemySyncConfig(connection_string="sqlite://", session_key="mine").session_key == "mine"


def test_a_registry_finds_by_bind_key_and_by_session_key_and_never_guesses():
    users = SqliteConfig(pool_config={"database": ":memory:"}, bind_key="users")
    orders = SqliteConfig(pool_config={"database": ":memory:"}, bind_key="orders", session_key="o")
    registry = Registry.of([users, orders])
    assert registry.get("users") is users
    assert registry.get("o") is orders
    assert Registry.of(users).get() is users
    assert Registry([users, orders]).get() is users
    with pytest.raises(ImproperConfigurationError, match=r"'users', 'orders'"):
        registry.get()
    with pytest.raises(ImproperConfigurationError, match="Did you mean 'users'"):
        registry.get("user")


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"bind_key": "a"}, "unique name"),
        ({"bind_key": "b", "session_key": "s"}, "Duplicate state keys found"),
        ({"bind_key": "s"}, "would mean two databases"),
        ({"bind_key": "b", "session_key": "a"}, "would mean two databases"),
    ],
)
def test_a_word_that_means_two_databases_is_an_error(second, words):
    first = SqliteConfig(pool_config={"database": ":memory:"}, bind_key="a", session_key="s")
    with pytest.raises(ImproperConfigurationError, match=words):
        Registry([first, SqliteConfig(pool_config={"database": ":memory:"}, **second)])


def test_an_engine_and_a_maker_of_the_users_are_used_as_they_are():
    engine = create_engine("sqlite://")
    config = SQLAlchemySyncConfig(engine_instance=engine)
    assert config.get_engine() is engine
    own = create_async_engine("sqlite+aiosqlite://")
    assert SQLAlchemyAsyncConfig(engine_instance=own).get_engine() is own


def test_importing_transept_imports_no_framework_and_no_driver():
    code = (
        "import sys, transept, transept.gate.asgi, transept.gate.wsgi; "
        "print(sorted({'sqlalchemy', 'starlette', 'asyncpg', 'sqlite3', 'psycopg'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("extension", ["starlette", "fastapi", "litestar"])
def test_an_extension_imports_no_sqlalchemy_until_it_is_asked_for(extension):
    code = (
        f"import sys, transept.extensions.{extension} as ext; assert 'sqlalchemy' not in sys.modules; "
        "ext.SQLAlchemyAsyncConfig; assert 'sqlalchemy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("extension", "others"),
    [
        ("starlette", {"fastapi", "litestar", "flask"}),
        ("fastapi", {"litestar", "flask"}),
        ("litestar", {"starlette", "fastapi", "flask"}),
    ],
)
def test_an_extension_imports_no_driver_and_no_other_framework(extension, others):
    foreign = others | {"asyncpg", "psycopg", "aiosqlite", "sqlite3", "asyncmy", "pymysql"}
    code = f"import sys, transept.extensions.{extension}; print(sorted({foreign} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_app_of_litestar_over_a_raw_driver_imports_no_sqlalchemy():
    code = """
import sys
from litestar import Litestar
from transept.adapters.asyncpg import AsyncpgConfig
from transept.extensions.litestar import Transept
Litestar([], plugins=[Transept(AsyncpgConfig())])
print(sorted({'sqlalchemy', 'sqlite3', 'psycopg'} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
