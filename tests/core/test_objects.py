"""ORM objects outlive the gate's own commit: in bodies, hooks and background tasks."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from transept import after_commit
from transept.alchemy import SQLAlchemyAsyncConfig
from transept.extensions.starlette import Transept


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def client(tmp_path):
    heard = []

    async def make(request):
        session = db.get_async_session(request)
        thing = Thing(name="one")
        session.add_all([thing, Thing(name="two"), Thing(name="three")])
        await session.flush()
        after_commit(lambda: heard.append(("hook", thing.id)))

        def background():
            heard.append(("background", thing.name))

        return Response(status_code=201, background=BackgroundTask(background))

    async def stream(request):
        loaded = list(await db.get_async_session(request).scalars(select(Thing)))

        async def body():
            session = db.get_async_session(request)
            for thing in loaded:
                yield thing.name
            async for thing in await session.stream_scalars(select(Thing)):
                yield thing.name
            for thing in (await session.scalars(select(Thing))).all():
                yield thing.name

        return StreamingResponse(body())

    app = Starlette(routes=[Route("/make", make, methods=["POST"]), Route("/stream", stream)])
    config = SQLAlchemyAsyncConfig(
        connection_string=f"sqlite+aiosqlite:///{tmp_path}/objects.db",
        commit_mode="autocommit",
        create_all=True,
        metadata=Base.metadata,
    )
    db = Transept(config, app)
    with TestClient(app) as client:
        client.heard = heard
        yield client


def test_hooks_background_tasks_and_bodies_can_use_objects_that_were_loaded_before(client):
    assert client.post("/make").status_code == 201
    assert client.heard == [("hook", 1), ("background", "one")]
    assert client.get("/stream").text == "onetwothree" * 3
