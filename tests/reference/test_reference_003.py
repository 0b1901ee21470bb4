"""Each snippet of the reference of the Flask extension, unchanged but for its imports and for where the servers are.

Its services (`FlaskServiceMixin`, whose snippet puts a sync repository under an async service) and its commands
(``flask database ...``) are no part of this: services and migrations come later.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from servers.server import Server
from sqlalchemy import create_engine, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from transept import ImproperConfigurationError, unit_of_work
from transept.extensions.flask import (
    EngineConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemySyncConfig,
)
from transept.extensions.flask import Transept as AdvancedAlchemy


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users_003"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

    def dict(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name}


USERS = [{"id": 1, "name": "Ann"}, {"id": 2, "name": "Bo"}]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reference's files have relative paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill(url: str) -> None:
    """Two users, by another connection."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([User(**user) for user in USERS])
    engine.dispose()


def names(url: str) -> list[str]:
    """What another connection sees."""
    engine = create_engine(url)
    try:
        with Session(engine) as session:
            return list(session.scalars(select(User.name).order_by(User.id)))
    finally:
        engine.dispose()


@pytest.fixture
def at(postgres: Server) -> Iterator[str]:
    """The PostgreSQL of the reference, as `user:pass@localhost/db` is written there; without the table."""
    drop(postgres)
    yield postgres.url("asyncpg")
    drop(postgres)


def drop(postgres: Server) -> None:
    engine = create_engine(postgres.url("psycopg"))
    Base.metadata.drop_all(engine)
    engine.dispose()


def sync(url: str) -> str:
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def leaves_nothing(db: AdvancedAlchemy) -> bool:
    db.close()
    return not any(thread.name == "transept-loop" for thread in threading.enumerate())


# Basic Usage


def test_basic_usage() -> None:
    app = Flask(__name__)

    db_config = SQLAlchemySyncConfig(
        engine_config=EngineConfig(
            url="sqlite:///db.sqlite3",
        ),
        commit_mode="autocommit",
    )

    db = AdvancedAlchemy(config=db_config)
    db.init_app(app)

    # Use in your routes
    @app.route("/users")
    def list_users():
        session = db.get_session()
        users = session.query(User).all()
        return {"users": [user.dict() for user in users]}

    @app.post("/users")
    def add_user():
        db.get_session().add(User(name="Cy"))
        return "", 201

    @app.post("/refused")
    def refuse_user():
        db.get_session().add(User(name="Di"))
        db.get_session().flush()
        return "", 409

    fill("sqlite:///db.sqlite3")
    client = app.test_client()
    assert client.get("/users").json == {"users": USERS}
    assert (client.post("/users").status_code, client.post("/refused").status_code) == (201, 409)
    assert names("sqlite:///db.sqlite3") == ["Ann", "Bo", "Cy"]
    assert leaves_nothing(db)


# Multiple Databases


def test_multiple_databases() -> None:
    app = Flask(__name__)
    configs = [
        SQLAlchemySyncConfig(
            engine_config=EngineConfig(url="sqlite:///users.db"),
            bind_key="users",
        ),
        SQLAlchemySyncConfig(
            engine_config=EngineConfig(url="sqlite:///products.db"),
            bind_key="products",
        ),
    ]

    db = AdvancedAlchemy(config=configs)
    db.init_app(app)

    fill("sqlite:///users.db")
    with app.app_context():
        # Get session for specific database
        users_session = db.get_session("users")
        products_session = db.get_session("products")

        assert str(users_session.get_bind().url) == "sqlite:///users.db"
        assert str(products_session.get_bind().url) == "sqlite:///products.db"
        assert len(users_session.query(User).all()) == 2
        assert not inspect(products_session.connection()).has_table("users_003")
    assert leaves_nothing(db)


def test_several_databases_without_a_default_need_a_key() -> None:
    app = Flask(__name__)
    configs = [
        SQLAlchemySyncConfig(engine_config=EngineConfig(url=f"sqlite:///{name}.db"), bind_key=name)
        for name in ("users", "products")
    ]
    db = AdvancedAlchemy(config=configs)
    db.init_app(app)
    with app.app_context(), pytest.raises(ImproperConfigurationError, match=r"'default'.*'users', 'products'"):
        db.get_session()
    assert leaves_nothing(db)


def test_a_single_configuration_is_used_whatever_its_bind_key() -> None:
    app = Flask(__name__)
    config = SQLAlchemySyncConfig(engine_config=EngineConfig(url="sqlite:///users.db"), bind_key="users")
    db = AdvancedAlchemy(config=config)
    db.init_app(app)
    with app.app_context():
        assert db.get_session() is db.get_session("users")
        assert db.get_engine() is config.get_engine()
    assert leaves_nothing(db)


# Async Support


def test_async_support(at: str) -> None:
    app = Flask(__name__)
    db_config = SQLAlchemyAsyncConfig(
        engine_config=EngineConfig(
            url=at,
        ),
        create_all=True,
        metadata=Base.metadata,
    )

    db = AdvancedAlchemy(config=db_config)
    db.init_app(app)

    # Use async session in your routes
    @app.route("/users")
    async def list_users():
        session = db.get_session()
        users = await session.execute(select(User))
        return {"users": [user.dict() for user in users.scalars()]}

    client = app.test_client()
    assert client.get("/users").json == {"users": []}
    fill(sync(at))
    assert client.get("/users").json == {"users": USERS}
    assert leaves_nothing(db)


def test_an_async_session_within_a_sync_context(at: str) -> None:
    app = Flask(__name__)
    db = AdvancedAlchemy(
        config=SQLAlchemyAsyncConfig(engine_config=EngineConfig(url=at), create_all=True, metadata=Base.metadata)
    )
    db.init_app(app)

    @app.route("/users")
    def list_users():
        session = db.get_session()
        users = session.execute(select(User))
        return {"users": [user.dict() for user in users.scalars()]}

    client = app.test_client()
    assert client.get("/users").json == {"users": []}
    fill(sync(at))
    assert client.get("/users").json == {"users": USERS}
    assert leaves_nothing(db)


ALONE = """
import sys
from flask import Flask
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from transept.extensions.flask import Transept as AdvancedAlchemy
from transept.extensions.flask import EngineConfig, SQLAlchemyAsyncConfig

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "users_003"
    id: Mapped[int] = mapped_column(primary_key=True)

app = Flask(__name__)
db_config = SQLAlchemyAsyncConfig(
    engine_config=EngineConfig(
        url=sys.argv[1],
    ),
    create_all=True,
)

db = AdvancedAlchemy(config=db_config)
db.init_app(app)

@app.route("/users")
async def list_users():
    session = db.get_session()
    users = await session.execute(select(User))
    return {"users": [user.dict() for user in users.scalars()]}

print(app.test_client().get("/users").json)
"""


def test_async_support_in_a_program_with_one_declarative_base(at: str) -> None:
    slow = "ignore:__main__.list_users held the background loop"  # on a busy machine, the import of the driver
    command = [sys.executable, "-W", "error", "-W", slow, "-c", ALONE, at]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    assert (done.stdout.strip(), done.stderr) == ("{'users': []}", "")


# SQLAlchemy Configuration


@pytest.mark.parametrize("config", [SQLAlchemySyncConfig, SQLAlchemyAsyncConfig])
def test_the_options_have_the_references_defaults(config: Any) -> None:
    made = config(engine_config=EngineConfig(url="sqlite://" if config.blocking else "sqlite+aiosqlite://"))
    assert (made.bind_key, made.create_all, made.commit_mode) == ("default", False, "manual")


@pytest.mark.parametrize("config", [SQLAlchemySyncConfig, SQLAlchemyAsyncConfig])
def test_create_all_makes_tables_at_first_use_and_not_before(config: Any, folder: Path) -> None:
    app = Flask(__name__)
    driver = "sqlite" if config is SQLAlchemySyncConfig else "sqlite+aiosqlite"
    db = AdvancedAlchemy(
        config=config(engine_config=EngineConfig(url=f"{driver}:///made.db"), create_all=True, metadata=Base.metadata)
    )
    db.init_app(app)
    assert not (folder / "made.db").exists()

    @app.route("/users")
    def list_users():
        return {"users": [user.dict() for user in db.get_session().query(User).all()]}

    assert app.test_client().get("/users").json == {"users": []}
    assert leaves_nothing(db)


@pytest.mark.parametrize("config", [SQLAlchemySyncConfig, SQLAlchemyAsyncConfig])
@pytest.mark.parametrize(
    ("mode", "kept"),
    [("manual", []), ("autocommit", ["201"]), ("autocommit_include_redirect", ["201", "303"])],
)
def test_the_commit_mode_says_which_responses_commit(config: Any, mode: Any, kept: list[str]) -> None:
    app = Flask(__name__)
    driver = "sqlite" if config is SQLAlchemySyncConfig else "sqlite+aiosqlite"
    db = AdvancedAlchemy(config=config(engine_config=EngineConfig(url=f"{driver}:///db.sqlite3"), commit_mode=mode))
    db.init_app(app)

    @app.post("/<int:status>")
    def add_user(status: int):
        db.get_session().add(User(name=str(status)))
        db.get_session().flush()
        return "", status

    @app.post("/kept")
    def keep_user():
        db.get_session().add(User(name="by hand"))
        db.get_session().commit()
        return "", 201

    engine = create_engine("sqlite:///db.sqlite3")
    Base.metadata.create_all(engine)
    engine.dispose()
    for status in (201, 303, 404):
        assert app.test_client().post(f"/{status}").status_code == status
    assert app.test_client().post("/kept").status_code == 201
    assert names("sqlite:///db.sqlite3") == [*kept, "by hand"]
    assert leaves_nothing(db)


def test_the_sessions_of_the_reference_are_units_of_work_outside_of_requests(folder: Path) -> None:
    """A script has no app."""
    fill("sqlite:///db.sqlite3")
    config = SQLAlchemySyncConfig(engine_config=EngineConfig(url="sqlite:///db.sqlite3"))
    db = AdvancedAlchemy(config=config)
    with unit_of_work() as unit:
        unit.session(config).add(User(name="Cy"))
    with db.with_session() as session:
        session.add(User(name="Di"))
    assert names("sqlite:///db.sqlite3") == ["Ann", "Bo", "Cy", "Di"]
    assert leaves_nothing(db)
