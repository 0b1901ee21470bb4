"""`updated_at` follows what a flush changes, in both colours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import DateTime, String, func
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from transept import ImproperConfigurationError, unit_of_work
from transept._bridge import run_now
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.config import AsyncSessionConfig

LONG_AGO = datetime(2001, 1, 1)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    updated_at: Mapped[datetime] = mapped_column(DateTime, default=LONG_AGO)


class ByItself(Base):
    __tablename__ = "by_itself"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    updated_at: Mapped[datetime] = mapped_column(DateTime, default=LONG_AGO, onupdate=func.datetime("2002-02-02"))


class Worded(Base):
    __tablename__ = "worded"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    updated_at: Mapped[str] = mapped_column(String(30), default="never")


@contextmanager
def database(path: Path, **settings: Any) -> Iterator[SQLAlchemySyncConfig]:
    config = SQLAlchemySyncConfig(
        connection_string=f"sqlite:///{path / 'notes.db'}", create_all=True, metadata=Base.metadata, **settings
    )
    with unit_of_work() as unit:
        unit.session(config).add_all([Note(text="a"), ByItself(text="a"), Worded(text="a")])
    try:
        yield config
    finally:
        run_now(config.stop())


def changed(config: SQLAlchemySyncConfig, kind: Any, **values: Any) -> Any:
    with unit_of_work() as unit:
        row = unit.session(config).get_one(kind, 1)
        for name, value in values.items():
            setattr(row, name, value)
    with unit_of_work() as unit:
        return unit.session(config).get_one(kind, 1).updated_at


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def test_a_change_is_dated_in_utc(tmp_path: Path) -> None:
    with database(tmp_path) as config:
        assert now() - changed(config, Note, text="b") < timedelta(seconds=30)


def test_what_is_not_changed_is_not_dated(tmp_path: Path) -> None:
    with database(tmp_path) as config:
        assert changed(config, Note, text="a") == LONG_AGO


def test_the_apps_own_time_stands(tmp_path: Path) -> None:
    with database(tmp_path) as config:
        own = datetime(2010, 1, 1)
        assert changed(config, Note, text="b", updated_at=own) == own


def test_a_column_that_dates_itself_does(tmp_path: Path) -> None:
    with database(tmp_path) as config:
        assert changed(config, ByItself, text="b") == datetime(2002, 2, 2)


def test_a_column_of_another_type_is_let_alone(tmp_path: Path) -> None:
    with database(tmp_path) as config:
        assert changed(config, Worded, text="b") == "never"


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    with database(tmp_path, enable_touch_updated_timestamp_listener=False) as config:
        assert changed(config, Note, text="b") == LONG_AGO


def test_other_sessions_are_not_listened_to(tmp_path: Path) -> None:
    with database(tmp_path) as config:
        with Session(config.get_engine()) as session:
            session.get_one(Note, 1).text = "b"
            session.commit()
        assert changed(config, Note) == LONG_AGO


@pytest.mark.anyio
@pytest.mark.parametrize("switched_on", [True, False])
async def test_in_async_sessions_of_ones_own_class_too(tmp_path: Path, switched_on: bool) -> None:
    class Mine(Session):
        pass

    config = SQLAlchemyAsyncConfig(
        connection_string=f"sqlite+aiosqlite:///{tmp_path / 'notes.db'}",
        create_all=True,
        metadata=Base.metadata,
        session_config=AsyncSessionConfig(sync_session_class=Mine),
        enable_touch_updated_timestamp_listener=switched_on,
    )
    async with unit_of_work() as unit:
        session = unit.session(config)
        assert isinstance(session.sync_session, Mine)
        session.add(Note(text="a"))
    async with unit_of_work() as unit:
        (await unit.session(config).get_one(Note, 1)).text = "b"
    async with unit_of_work() as unit:
        found = (await unit.session(config).get_one(Note, 1)).updated_at
    assert (found != LONG_AGO) is switched_on
    await config.stop()


def test_the_setting_is_checked() -> None:
    with pytest.raises(ImproperConfigurationError, match="enable_touch_updated_timestamp_listener='yes'"):
        SQLAlchemySyncConfig(connection_string="sqlite://", enable_touch_updated_timestamp_listener="yes")  # type: ignore[arg-type]
