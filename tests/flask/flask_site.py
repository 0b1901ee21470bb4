"""What tests of Flask apps share: models of the tests' tables, an app over them, and what must hold after each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

from flask import Flask, has_app_context, has_request_context
from held import VIOLATION, File, Postgres, out_of_pool
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from werkzeug.test import Client, TestResponse

from transept.context import CURRENT
from transept.extensions.flask import Transept

TABLES = ("sqlite", "postgres")


class Base(DeclarativeBase):
    """Models of the tables in `held.SCHEMA`."""


class Held(Base):
    __tablename__ = "held"

    v: Mapped[int] = mapped_column(primary_key=True)


class Parent(Base):
    __tablename__ = "parent"

    id: Mapped[int] = mapped_column(primary_key=True)
    children: Mapped[list[Child]] = relationship(back_populates="parent")


class Child(Base):
    __tablename__ = "child"

    p: Mapped[int] = mapped_column(ForeignKey("parent.id"), primary_key=True)
    parent: Mapped[Parent] = relationship(back_populates="children")


@dataclass
class Site:
    """A Flask app, its database, and a second connection that looks at what is kept."""

    app: Flask
    db: Transept
    tables: File | Postgres
    config: Any
    configs: list[Any] = field(default_factory=list)
    """Those of other databases that the test makes; they are looked at in the end, too."""

    def add(self, v: int) -> None:
        """A row, in the session of the moment; it is sent at once."""
        session = self.db.get_sync_session()
        session.add(Held(v=v))
        session.flush()

    def violate(self) -> None:
        """What fails at COMMIT, not before."""
        self.db.get_sync_session().execute(VIOLATION)

    def held(self) -> list[int]:
        return self.tables.held()

    def view(self, function: Callable[..., Any], rule: str = "/", **options: Any) -> Callable[..., Any]:
        """At this path, GET and POST."""
        options = {"methods": ["GET", "POST"], "endpoint": f"{function.__name__} at {rule}", **options}
        self.app.add_url_rule(rule, view_func=function, **options)
        return function

    def post(self, path: str = "/", **options: Any) -> TestResponse:
        """The whole answer, without Flask's own client, which pushes contexts."""
        return Client(self.app).post(path, **{"buffered": True, **options})

    def get(self, path: str = "/", **options: Any) -> TestResponse:
        return Client(self.app).get(path, **{"buffered": True, **options})

    def clean(self) -> bool:
        """Whether no connection is out of the pool, and nothing idle in transaction."""
        back = all(out_of_pool(config) == 0 for config in (self.config, *self.configs))
        return back and (isinstance(self.tables, File) or nothing_open(self.tables))


def nothing_open(pg: Postgres, seconds: float = 3) -> bool:
    """Whether the server has no transaction of the test's; of a line that was cut it hears a moment later."""
    until = monotonic() + seconds
    while pg.in_transaction():
        if monotonic() > until:
            return False
        sleep(0.02)
    return True


@contextmanager
def site_of(tables: File | Postgres, config: Any, **options: Any) -> Iterator[Site]:
    """A site, and what must hold when the test is over; `options` are those of `Transept`."""
    app = Flask("site")
    app.secret_key = "not secret"
    before = threading.enumerate()
    site = Site(app, Transept(config, app, **options), tables, config)
    yield site
    assert site.clean()
    assert CURRENT.get() is None
    assert not has_app_context()
    assert not has_request_context()
    site.db.close()
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert "transept-loop" not in left
