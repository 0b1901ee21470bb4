"""A guarded class is made once for each session class, hears what its class hears, and goes with it."""

from __future__ import annotations

import gc

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from transept import unit_of_work
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig

pytestmark = pytest.mark.anyio


def session_classes():
    gc.collect()
    return sum(isinstance(one, type) and issubclass(one, Session) for one in gc.get_objects())


@pytest.fixture
def engine():
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


def test_an_app_that_makes_a_maker_for_each_unit_does_not_grow(engine):
    def one_unit():
        config = SQLAlchemySyncConfig(session_maker=sessionmaker(engine))
        with unit_of_work() as unit:
            unit.session(config).execute(text("SELECT 1"))

    one_unit()
    before = session_classes()
    for _ in range(50):
        one_unit()
    assert session_classes() == before


async def test_nor_does_one_with_async_makers():
    engine = create_async_engine("sqlite+aiosqlite://")

    async def one_unit():
        class OfThisUnit(Session):
            pass

        config = SQLAlchemyAsyncConfig(session_maker=async_sessionmaker(engine, sync_session_class=OfThisUnit))
        async with unit_of_work() as unit:
            await unit.session(config).execute(text("SELECT 1"))

    await one_unit()
    before = session_classes()
    for _ in range(50):
        await one_unit()
    assert session_classes() == before
    await engine.dispose()


def test_the_sessions_of_one_maker_have_one_class(engine):
    config = SQLAlchemySyncConfig(session_maker=sessionmaker(engine))
    seen = []
    for _ in range(2):
        with unit_of_work() as unit:
            seen.append(type(unit.session(config)))
    assert seen[0] is seen[1]


def test_a_class_and_the_class_below_it_are_guarded_each_for_itself(engine):
    class Own(Session):
        name = "own"

    class Below(Own):
        name = "below"

    for plain in (Own, Below, Own):
        with unit_of_work() as unit:
            session = unit.session(SQLAlchemySyncConfig(session_maker=sessionmaker(engine, class_=plain)))
            assert (session.name, isinstance(session, Below)) == (plain.name, plain is Below)


def test_listeners_of_the_class_are_heard_whenever_they_came(engine):
    class Own(Session):
        pass

    heard = []
    event.listen(Own, "before_commit", lambda session: heard.append("before the first session"))
    config = SQLAlchemySyncConfig(session_maker=sessionmaker(engine, class_=Own))
    with unit_of_work() as unit:
        unit.session(config).execute(text("SELECT 1"))
    assert heard == ["before the first session"]
    event.listen(Own, "before_commit", lambda session: heard.append("after it"))
    with unit_of_work() as unit:
        unit.session(config).execute(text("SELECT 1"))
    assert heard[1:] == ["before the first session", "after it"]
