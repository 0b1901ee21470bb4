"""Databases start and stop with a Starlette app, and what the user brought stays the user's."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from typing import Any

import pytest
from held import COUNT, File, Postgres, calling, eventually, get, insert, out_of_pool, post
from sqlalchemy import MetaData, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from transept import ImproperConfigurationError
from transept.extensions.starlette import EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig, Transept

pytestmark = pytest.mark.anyio

NOWHERE = "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"


class Base(DeclarativeBase):
    pass


class Word(Base):
    __tablename__ = "word"
    id: Mapped[int] = mapped_column(primary_key=True)


def app_with(config: Any, endpoint: Any = None, **options: Any) -> Starlette:
    app = Starlette(routes=[Route("/", endpoint or write, methods=["GET", "POST"])], **options)
    Transept(config, app)
    return app


async def write(request: Request) -> Response:
    await request.state.db_session.execute(insert(1))
    return Response(status_code=201)


def write_in_a_thread(request: Request) -> Response:
    request.state.db_session.execute(insert(1))
    return Response(status_code=201)


class Noting(SQLAlchemyAsyncConfig):
    """A database that notes its start and its stop, and may fail at either."""

    def __init__(self, seen: list[str], fails: str = "", **settings: Any) -> None:
        super().__init__(**settings)
        self.seen, self.fails = seen, fails

    async def start(self) -> None:
        self.seen.append(f"start {self.bind_key}")
        if self.fails == "start":
            raise OSError(f"{self.bind_key} does not start")
        await super().start()

    async def stop(self) -> None:
        self.seen.append(f"stop {self.bind_key}")
        await super().stop()
        if self.fails == "stop":
            raise OSError(f"{self.bind_key} does not stop")


# Start and stop


def test_databases_start_in_order_and_stop_in_reverse(file: File) -> None:
    seen: list[str] = []
    databases = [Noting(seen, connection_string=file.url(), bind_key=key) for key in ("a", "b", "c")]
    with TestClient(app_with(databases)):
        assert seen == ["start a", "start b", "start c"]
    assert seen[3:] == ["stop c", "stop b", "stop a"]


def test_every_database_is_stopped_also_when_one_fails_and_its_error_surfaces(file: File) -> None:
    seen: list[str] = []
    databases = [
        Noting(seen, "stop" if key in "bc" else "", connection_string=file.url(), bind_key=key)
        for key in ("a", "b", "c")
    ]
    with pytest.raises(OSError, match="c does not stop") as caught, TestClient(app_with(databases)):
        pass
    assert seen[3:] == ["stop c", "stop b", "stop a"]
    assert any("'b'" in note for note in caught.value.__notes__)


def test_a_database_that_does_not_start_stops_those_that_have(file: File) -> None:
    seen: list[str] = []
    databases = [
        Noting(seen, connection_string=file.url(), bind_key="a"),
        Noting(seen, "start", connection_string=file.url(), bind_key="b"),
        Noting(seen, connection_string=file.url(), bind_key="c"),
    ]
    with pytest.raises(OSError, match="b does not start"), TestClient(app_with(databases)):
        pass
    assert seen == ["start a", "start b", "stop b", "stop a"]


def test_an_unreachable_database_at_start_up_closes_those_that_were_reached(pg: Postgres) -> None:
    reached = pg.config(create_all=True, metadata=MetaData())
    unreachable = SQLAlchemyAsyncConfig(
        connection_string=NOWHERE, create_all=True, metadata=Base.metadata, bind_key="nowhere"
    )
    with pytest.raises(OSError), TestClient(app_with([reached, unreachable])):  # noqa: PT011 - the driver's own
        pass
    assert asyncio.run(eventually(lambda: pg.backends() == 0))


def test_an_unreachable_database_that_nobody_uses_stops_nobody() -> None:
    async def endpoint(request: Request) -> Response:
        return Response()

    with TestClient(app_with(SQLAlchemyAsyncConfig(connection_string=NOWHERE), endpoint)) as client:
        assert client.get("/").status_code == 200


def test_a_lifespan_of_the_user_that_fails_stops_the_databases(file: File) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        raise KeyError
        yield

    with pytest.raises(KeyError), TestClient(app_with(Noting(seen, connection_string=file.url()), lifespan=lifespan)):
        pass
    assert seen == ["start default", "stop default"]


def test_a_database_that_failed_to_start_may_be_started_again(file: File) -> None:
    seen: list[str] = []
    database = Noting(seen, "start", connection_string=file.url())
    app = app_with(database)
    with pytest.raises(OSError, match="does not start"), TestClient(app):
        pass
    database.fails = ""
    with TestClient(app) as client:
        assert client.post("/").status_code == 201
    assert seen == ["start default", "stop default"] * 2


def test_the_pool_is_closed_at_shutdown(pg: Postgres) -> None:
    with TestClient(app_with([pg.config(), pg.sync_config(bind_key="sync")])) as client:
        assert client.post("/").status_code == 201
        assert pg.backends() == 1
    assert asyncio.run(eventually(lambda: pg.backends() == 0))


# Without a lifespan


def test_a_client_without_a_lifespan_leaves_no_connection(pg: Postgres) -> None:
    app = app_with(pg.config())
    client = TestClient(app)
    for _ in range(5):
        assert client.post("/").status_code == 201
    del client, app
    gc.collect()
    assert asyncio.run(eventually(lambda: pg.backends() == 0))
    assert pg.held() == [1] * 5


def test_a_client_without_a_lifespan_leaves_no_connection_of_a_failed_request(pg: Postgres) -> None:
    async def raises(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        raise KeyError

    client = TestClient(app_with(pg.config(), raises), raise_server_exceptions=False)
    assert client.post("/").status_code == 500
    gc.collect()
    assert asyncio.run(eventually(lambda: pg.backends() == 0))


def test_a_blocking_database_without_a_lifespan_keeps_its_pool_between_requests(pg: Postgres) -> None:
    config = pg.sync_config()
    client = TestClient(app_with(config, write_in_a_thread))
    for _ in range(5):
        assert client.post("/").status_code == 201
    assert pg.backends() == 1
    asyncio.run(config.stop())
    assert pg.backends() == 0


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_database_that_is_forgotten_before_its_loop_ends_is_closed_all_the_same(
    pg: Postgres, file: File, turns: int
) -> None:
    async def main(tables: Any) -> None:
        assert (await post(app_with(tables.config()))).status_code == 201
        gc.collect()  # as it may happen at any time
        for _ in range(turns):
            await asyncio.sleep(0)

    for _ in range(5):
        asyncio.run(main(pg))
        assert pg.backends() == 0
        asyncio.run(main(file))
    gc.collect()


def test_a_blocking_database_that_nobody_stops_is_closed_when_it_is_forgotten(pg: Postgres) -> None:
    config = pg.sync_config()
    pg.blocking.clear()
    client = TestClient(app_with(config, write_in_a_thread))
    assert client.post("/").status_code == 201
    del client, config
    gc.collect()  # the driver warns of a connection that nobody closed
    assert asyncio.run(eventually(lambda: pg.backends() == 0))


def test_each_run_of_an_event_loop_gets_an_engine_of_its_own(pg: Postgres) -> None:
    app = app_with(pg.config())
    for _ in range(3):
        assert asyncio.run(post(app)).status_code == 201
    gc.collect()
    assert asyncio.run(eventually(lambda: pg.backends() == 0))


# create_all


def creating(**settings: Any) -> dict[str, Any]:
    return {"commit_mode": "autocommit", "create_all": True, "metadata": Base.metadata, **settings}


def test_tables_are_created_at_start_up_and_not_before(tmp_path: Any) -> None:
    path = tmp_path / "new.db"
    app = app_with(SQLAlchemyAsyncConfig(connection_string=f"sqlite+aiosqlite:///{path}", **creating()))
    assert not path.exists()
    with TestClient(app), create_engine(f"sqlite:///{path}").connect() as look:
        assert look.scalar(text("SELECT count(*) FROM word")) == 0
        look.connection.detach()


async def test_tables_are_created_at_first_use_by_however_many_at_once(tmp_path: Any) -> None:
    async def add(request: Request) -> Response:
        request.state.db_session.add(Word())
        return Response(status_code=201)

    url = f"sqlite+aiosqlite:///{tmp_path / 'new.db'}"
    config = SQLAlchemyAsyncConfig(connection_string=url, **creating())
    async with calling(app_with(config, add), raises=True) as client:
        answers = await asyncio.gather(*(client.post("/") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    async with config.get_engine().connect() as look:
        assert await look.scalar(text("SELECT count(*) FROM word")) == 20


async def test_tables_are_created_at_first_use_of_a_blocking_database(tmp_path: Any) -> None:
    def add(request: Request) -> Response:
        request.state.db_session.add(Word())
        return Response(status_code=201)

    config = SQLAlchemySyncConfig(connection_string=f"sqlite:///{tmp_path / 'new.db'}", **creating())
    async with calling(app_with(config, add), raises=True) as client:
        answers = await asyncio.gather(*(client.post("/") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    with config.get_engine().connect() as look:
        assert look.scalar(text("SELECT count(*) FROM word")) == 20
    config.get_engine().dispose()


async def test_a_first_use_of_an_unreachable_database_is_an_error_and_the_next_one_tries_again() -> None:
    config = SQLAlchemyAsyncConfig(connection_string=NOWHERE, **creating())
    async with calling(app_with(config)) as client:
        assert [(await client.post("/")).status_code for _ in range(2)] == [500, 500]


def test_create_all_without_metadata_means_the_only_base_and_else_asks(tmp_path: Any) -> None:
    class Other(DeclarativeBase):
        pass

    class Thing(Other):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)

    config = SQLAlchemyAsyncConfig(connection_string=f"sqlite+aiosqlite:///{tmp_path / 'x.db'}", create_all=True)
    with pytest.raises(ImproperConfigurationError, match="metadata="), TestClient(app_with(config)):
        pass


# What the user brought


async def test_a_maker_of_the_user_is_used_as_it_is(file: File) -> None:
    class Mine(AsyncSession):
        pass

    class Inner(Session):
        pass

    engine = create_async_engine(file.url())
    maker = async_sessionmaker(engine, class_=Mine, sync_session_class=Inner, expire_on_commit=False, info={"a": 1})
    before = (dict(maker.kw), maker.class_)
    seen: list[Any] = []

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute(insert(1))
        seen.append((isinstance(session, Mine), isinstance(session.sync_session, Inner), session.info["a"]))
        return Response(status_code=201)

    app = app_with(SQLAlchemyAsyncConfig(session_maker=maker, commit_mode="autocommit"), endpoint)
    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 201
    assert (seen, file.held()) == ([(True, True, 1)], [1])
    assert (dict(maker.kw), maker.class_) == before
    async with maker() as plain:
        assert (type(plain), type(plain.sync_session)) == (Mine, Inner)
        await plain.execute(insert(2))
        await plain.commit()
    assert file.held() == [1, 2]
    await engine.dispose()


def listeners(engine: Any) -> dict[str, int]:
    changing = ("connect", "first_connect", "checkout", "checkin", "reset")
    found = {name: len(list(getattr(engine.pool.dispatch, name))) for name in changing}
    own = ("begin", "commit", "rollback", "before_execute", "before_cursor_execute", "engine_connect", "savepoint")
    return found | {name: len(list(getattr(engine.dispatch, name))) for name in own}


def test_an_engine_of_the_user_is_used_as_it_is_and_not_disposed(file: File) -> None:
    engine = create_engine(file.url("pysqlite"))
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    engine.connect().close()
    before = listeners(engine)

    def endpoint(request: Request) -> Response:
        session = request.state.db_session
        session.execute(insert(1))
        return JSONResponse(session.scalar(text("PRAGMA foreign_keys")), 201)

    app = app_with(SQLAlchemySyncConfig(engine_instance=engine, commit_mode="autocommit"), endpoint)
    with TestClient(app) as client:
        assert client.post("/").json() == 0  # SQLite's default, as the engine was left
    assert listeners(engine) == before
    assert statements == ["INSERT INTO held VALUES (1)", "PRAGMA foreign_keys"]
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    assert file.held() == [1]
    engine.dispose()


async def test_an_async_engine_of_the_user_is_used_as_it_is_and_not_disposed(file: File) -> None:
    engine = create_async_engine(file.url(), poolclass=AsyncAdaptedQueuePool)
    async with engine.connect():
        pass
    before = listeners(engine.sync_engine)
    config = SQLAlchemyAsyncConfig(engine_instance=engine, commit_mode="autocommit")
    app = app_with(config)
    async with app.router.lifespan_context(app):
        assert (await post(app)).status_code == 201
        assert config.get_engine() is engine
    assert listeners(engine.sync_engine) == before
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    assert file.held() == [1]
    await engine.dispose()


async def test_any_callable_that_makes_sessions_will_do(file: File) -> None:
    engine = create_async_engine(file.url(), poolclass=NullPool)
    config = SQLAlchemyAsyncConfig(session_maker=lambda: AsyncSession(engine), commit_mode="autocommit")
    assert (await post(app_with(config))).status_code == 201
    assert file.held() == [1]
    with pytest.raises(ImproperConfigurationError, match="engine_instance="):
        config.get_engine()


def test_a_blocking_maker_of_the_user_is_used_as_it_is(file: File) -> None:
    engine = create_engine(file.url("pysqlite"))
    maker = sessionmaker(engine, autoflush=False)
    before = dict(maker.kw)
    config = SQLAlchemySyncConfig(session_maker=maker, commit_mode="autocommit")
    with TestClient(app_with(config, write_in_a_thread)) as client:
        assert client.post("/").status_code == 201
        assert config.get_engine() is engine
    assert dict(maker.kw) == before
    assert type(maker()) is maker.class_
    assert file.held() == [1]
    engine.dispose()


def test_a_maker_of_the_user_that_is_shared_by_two_apps_is_guarded_in_both(file: File) -> None:
    engine = create_engine(file.url("pysqlite"))
    maker = sessionmaker(engine)
    for _ in range(2):
        config = SQLAlchemySyncConfig(session_maker=maker, commit_mode="autocommit")
        with TestClient(app_with(config, write_in_a_thread)) as client:
            assert client.post("/").status_code == 201
    assert file.held() == [1, 1]
    engine.dispose()


async def test_the_options_of_engines_and_sessions_are_passed_on(file: File) -> None:
    from transept.extensions.starlette import AsyncSessionConfig

    config = SQLAlchemyAsyncConfig(
        engine_config=EngineConfig(url=file.url(), pool_size=2, max_overflow=1, echo=False),
        session_config=AsyncSessionConfig(expire_on_commit=False, autoflush=False, info={"b": 2}),
        commit_mode="autocommit",
    )

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        assert session.info["b"] == 2
        assert (session.sync_session.expire_on_commit, session.sync_session.autoflush) == (False, False)
        assert session.bind.pool.size() == 2
        return JSONResponse(await session.scalar(COUNT))

    async with calling(app_with(config, endpoint), raises=True) as client:
        assert (await client.get("/")).json() == 0
    assert out_of_pool(config) == 0


async def test_a_session_made_by_hand_from_the_config_is_the_users_own(file: File) -> None:
    config = file.config()

    async def endpoint(request: Request) -> Response:
        async with config.create_session_maker()() as session:
            await session.execute(insert(1))
            await session.commit()
        return Response(status_code=400)

    assert (await get(app_with(config, endpoint))).status_code == 400
    assert file.held() == [1]
    assert out_of_pool(config) == 0
