"""What apps return as JSON: models, rows, structs and other records, beside what Flask knows."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import uuid
from decimal import Decimal
from typing import Any

import attrs
import msgspec
import pydantic
import pytest
from flask import Flask, jsonify
from flask.json.provider import DefaultJSONProvider, JSONProvider
from flask_site import Child, Held, Parent, Site, site_of
from held import File
from sqlalchemy import ForeignKey, Numeric, event, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    column_property,
    mapped_column,
    relationship,
)

from transept import UsageError
from transept.alchemy import SQLAlchemySyncConfig
from transept.extensions.flask import SQLAlchemyAsyncConfig, Transept, TranseptJSONProvider
from transept.sql.session import SQLSession

DAY = datetime.date(2026, 1, 2)
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
HTTP_DAY = "Fri, 02 Jan 2026 00:00:00 GMT"
HTTP_MOMENT = "Fri, 02 Jan 2026 03:04:05 GMT"
NAME = uuid.UUID("12345678-1234-5678-1234-567812345678")


class Colour(enum.Enum):
    RED = "red"
    DEEP = ("deep", 2)


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column("full_name")
    born: Mapped[datetime.date | None]
    colour: Mapped[Colour | None]
    letter: Mapped[str | None] = mapped_column("a_long_letter", deferred=True)
    books: Mapped[list[Book]] = relationship(back_populates="author", lazy="selectin")


class Book(Base):
    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    author: Mapped[Author] = relationship(back_populates="books")


class Shelf(Base):
    __tablename__ = "shelf"

    id: Mapped[int] = mapped_column(primary_key=True)
    next: Mapped[int] = column_property(id + 1)

    def to_dict(self) -> dict[str, Any]:
        return {"shelf": self.id, "day": DAY}


class DataBase(MappedAsDataclass, DeclarativeBase):
    metadata = Base.metadata


class Note(DataBase):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    about: Mapped[int] = mapped_column(ForeignKey("author.id"))
    aside: Mapped[str] = mapped_column(deferred=True, default="an aside")
    notes: Mapped[list[Note]] = relationship(
        primaryjoin="foreign(Note.about) == remote(Note.about)", viewonly=True, default_factory=list
    )


@dataclasses.dataclass
class Point:
    x: int
    day: datetime.date | None = None
    inner: Any = None


class Struct(msgspec.Struct):
    name: str
    moment: datetime.datetime
    inner: Any = None


class Model(pydantic.BaseModel):
    name: str
    moment: datetime.datetime
    key: uuid.UUID


@attrs.define
class Attrs:
    name: str
    inner: Any = None


@pytest.fixture
def database(file: File) -> SQLAlchemySyncConfig:
    config = file.sync_config(commit_mode="manual")
    Base.metadata.create_all(config.get_engine())
    return config


@pytest.fixture
def library(file: File, database: SQLAlchemySyncConfig) -> Any:
    """An author of two books, a shelf and a note."""
    with site_of(file, database) as site:
        with site.db.with_session() as session:
            books = [Book(id=number, price=Decimal("9.50")) for number in (1, 2)]
            session.add(Author(id=1, name="Ann", born=DAY, colour=Colour.RED, letter="dear", books=books))
            session.flush()
            session.add_all([Shelf(id=7), Note(id=1, text="a note", about=1)])
        yield site


ANN = {"id": 1, "name": "Ann", "born": HTTP_DAY, "colour": "red"}


def answered(site: Site, view: Any) -> Any:
    site.view(view)
    response = site.get()
    assert response.status_code == 200, response.text
    assert response.mimetype == "application/json"
    return response.get_json()


def encoded(value: Any, app: Flask | None = None) -> Any:
    """What an app with a Transept makes of this value."""
    app = app or Flask("json")
    Transept(SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://"), app)
    with app.test_request_context():
        response = jsonify(value)
        assert json.loads(response.get_data()) == app.json.loads(app.json.dumps(value))
        return response.get_json()


class Statements:
    """How many statements an engine was sent since this was made."""

    def __init__(self, config: SQLAlchemySyncConfig) -> None:
        self.count = 0
        event.listen(config.get_engine(), "before_cursor_execute", self._one)

    def _one(self, *_: Any) -> None:
        self.count += 1


# Models


@pytest.mark.parametrize("form", ["jsonify", "dict", "list"])
def test_a_model_is_its_loaded_columns_by_attribute_name(library: Site, form: str):
    def view():
        author = library.db.get_session().get(Author, 1)
        return {"jsonify": lambda: jsonify([author]), "dict": lambda: {"one": author}, "list": lambda: [author]}[form]()

    assert answered(library, view) == ({"one": ANN} if form == "dict" else [ANN])


def test_nothing_is_read_from_the_database_for_it(library: Site, database: SQLAlchemySyncConfig):
    def view():
        book = library.db.get_session().scalars(select(Book).where(Book.id == 1)).one()
        before = statements.count
        assert json.loads(library.app.json.dumps(book)) == {"id": 1, "author_id": 1, "price": "9.50"}
        return {"statements": statements.count - before}

    statements = Statements(database)
    assert answered(library, view) == {"statements": 0}


def test_a_deferred_column_is_there_once_it_is_loaded(library: Site):
    def view():
        author = library.db.get_session().get(Author, 1)
        assert author.letter == "dear"
        return jsonify(author)

    assert answered(library, view) == {**ANN, "letter": "dear"}


def test_what_the_apps_own_commit_has_expired_is_read_again_but_nothing_deferred(library: Site):
    def view():
        session = library.db.get_session()
        author = session.get(Author, 1)
        author.name = "Anna"
        session.commit()
        return jsonify(author)

    assert answered(library, view) == {**ANN, "name": "Anna"}


def test_so_it_is_in_plain_views_over_an_async_database(file: File, library: Site):
    def view():
        session = db.get_sync_session()
        author = session.get(Author, 1)
        session.commit()
        return [author]

    async def async_view():
        session = db.get_async_session()
        author = await session.get(Author, 1)
        await session.commit()
        return [author]

    with site_of(file, file.config(commit_mode="manual")) as site:
        db = site.db
        site.view(async_view, "/async")
        assert answered(site, view) == [ANN]
        assert site.get("/async").get_json() == [ANN]


def test_jsonify_in_an_async_view_says_that_it_cannot_read_what_has_expired(file: File, library: Site):
    async def view():
        session = db.get_async_session()
        author = await session.get(Author, 1)
        await session.commit()
        with pytest.raises(UsageError, match=r"has expired this Author, .*return it\b.*expire_on_commit=False"):
            jsonify(author)
        assert (await session.run_sync(lambda _: jsonify(author))).get_json() == ANN
        return jsonify(author)

    with site_of(file, file.config(commit_mode="manual")) as site:
        db = site.db
        assert answered(site, view) == ANN


def test_an_expired_model_without_its_session_is_an_error_and_not_an_empty_object(library: Site):
    with library.db.with_session() as session:
        author = session.get(Author, 1)
        session.expire(author)
        session.expunge(author)
    with library.app.app_context(), pytest.raises(SQLAlchemyError, match="not bound to a Session"):
        library.app.json.dumps(author)


def test_a_model_after_the_gates_commit_is_as_it_was_read(file: File):
    with site_of(file, file.sync_config()) as site:
        kept: list[Any] = []

        @site.view
        def view():
            site.add(3)
            kept.append(site.db.get_session().get(Held, 3))
            return "", 201

        assert site.post().status_code == 201
        assert site.app.json.dumps(kept[0]) == '{"v": 3}'


def test_a_model_that_is_not_stored_yet_is_what_was_set():
    assert encoded([Author(id=2, name="Bo"), Parent(id=1, children=[Child()])]) == [{"id": 2, "name": "Bo"}, {"id": 1}]


def test_a_models_own_to_dict_has_the_word(library: Site):
    assert answered(library, lambda: [library.db.get_session().get(Shelf, 7)]) == [{"shelf": 7, "day": HTTP_DAY}]


def test_a_model_that_is_a_dataclass_is_a_model(library: Site, database: SQLAlchemySyncConfig):
    def view():
        note = library.db.get_session().get(Note, 1)
        before = statements.count
        return {"note": json.loads(library.app.json.dumps(note)), "statements": statements.count - before}

    statements = Statements(database)
    assert answered(library, view) == {"note": {"id": 1, "text": "a note", "about": 1}, "statements": 0}


# Rows


def test_rows_and_mappings_are_objects(library: Site):
    def view():
        rows = library.db.get_session().execute(select(Author.id, Author.name, Author.born))
        found = rows.all()
        return {"rows": found, "mappings": [row._mapping for row in found]}

    row = {"id": 1, "name": "Ann", "born": HTTP_DAY}
    assert answered(library, view) == {"rows": [row], "mappings": [row]}


def test_a_row_of_models_has_each_by_its_name(library: Site):
    def view():
        return [library.db.get_session().execute(select(Author, Book.id.label("book")).join(Book)).first()]

    assert answered(library, view) == [{"Author": ANN, "book": 1}]


# Records


def test_a_struct_is_what_msgspec_makes_of_it():
    inner = Struct("inner", MOMENT, [NAME, Decimal("1.5"), DAY, b"ab"])
    assert encoded(Struct("outer", MOMENT, inner)) == {
        "name": "outer",
        "moment": "2026-01-02T03:04:05Z",
        "inner": {
            "name": "inner",
            "moment": "2026-01-02T03:04:05Z",
            "inner": [str(NAME), "1.5", "2026-01-02", "YWI="],
        },
    }


def test_records_hold_records_of_other_kinds():
    book = Book(id=1, price=Decimal("9.50"))
    plain_book = {"id": 1, "price": "9.50"}
    made = encoded(
        {
            "struct": Struct("s", MOMENT, [book, Point(1), Attrs("a")]),
            "dataclass": Point(1, DAY, [book, Struct("s", MOMENT)]),
            "attrs": Attrs("a", [book, Attrs("b", DAY)]),
        }
    )
    assert made == {
        "struct": {
            "name": "s",
            "moment": "2026-01-02T03:04:05Z",
            "inner": [plain_book, {"x": 1, "day": None, "inner": None}, {"name": "a", "inner": None}],
        },
        "dataclass": {
            "x": 1,
            "day": HTTP_DAY,
            "inner": [plain_book, {"name": "s", "moment": "2026-01-02T03:04:05Z", "inner": None}],
        },
        "attrs": {"name": "a", "inner": [plain_book, {"name": "b", "inner": HTTP_DAY}]},
    }


def test_a_pydantic_model_is_what_pydantic_makes_of_it():
    made = encoded([Model(name="m", moment=MOMENT, key=NAME)])
    assert made == [{"name": "m", "moment": "2026-01-02T03:04:05Z", "key": str(NAME)}]


# Values


@pytest.mark.parametrize(
    ("value", "plain", "ours"),
    [
        (DAY, HTTP_DAY, "2026-01-02"),
        (MOMENT, HTTP_MOMENT, "2026-01-02T03:04:05+00:00"),
        (Point(1, DAY), {"x": 1, "day": HTTP_DAY, "inner": None}, {"x": 1, "day": "2026-01-02", "inner": None}),
        (Author(born=DAY), {"born": HTTP_DAY}, {"born": "2026-01-02"}),
        (datetime.time(3, 4, 5), "03:04:05", "03:04:05"),
        (datetime.timedelta(hours=1, seconds=2), "PT3602S", "PT3602S"),
        (NAME, str(NAME), str(NAME)),
        (Decimal("1.50"), "1.50", "1.50"),
        (Colour.RED, "red", "red"),
        (Colour.DEEP, ["deep", 2], ["deep", 2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_json_lacks_are_text_and_dates_as_the_apps_provider_writes_them(value: Any, plain: Any, ours: Any):
    assert encoded(value) == plain
    app = Flask("iso")
    app.json = TranseptJSONProvider(app)
    assert encoded(value, app) == ours
    later = Flask("iso")
    assert encoded(value, later) == plain
    later.json = TranseptJSONProvider(later)
    with later.app_context():
        assert json.loads(later.json.dumps(value)) == ours


class Unknown:
    pass


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, Unknown(), Unknown, Author, Shelf, Struct, Model, Attrs, object])
@pytest.mark.parametrize("provider", [DefaultJSONProvider, TranseptJSONProvider])
def test_what_nobody_knows_is_flasks_error(value: Any, provider: Any):
    app = Flask("unknown")
    app.json = provider(app)
    with pytest.raises(TypeError, match=f"Object of type {type(value).__name__} is not JSON serializable"):
        encoded([value], app)


def test_an_error_inside_a_record_is_that_error():
    class Faulty:
        def to_dict(self) -> Any:
            raise TypeError("no dict of it")

    with pytest.raises(TypeError, match="no dict of it"):
        encoded(Faulty())


def test_an_unknown_value_in_a_struct_is_an_error_that_names_it():
    with pytest.raises(TypeError, match="Object of type Unknown is not JSON serializable"):
        encoded(Struct("s", MOMENT, Unknown()))


# Providers


def test_a_provider_of_the_apps_own_is_left_alone():
    class Own(JSONProvider):
        def dumps(self, obj: Any, **kwargs: Any) -> str:
            return "null"

        def loads(self, s: Any, **kwargs: Any) -> Any:
            return None

    app = Flask("own")
    own = app.json = Own(app)
    before = dict(own.__dict__)
    Transept(SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://"), app)
    assert app.json is own
    assert own.__dict__ == before
    assert app.json.dumps(Author(id=1)) == "null"


def test_a_function_of_the_apps_own_has_the_first_word():
    def default(value: Any) -> Any:
        if isinstance(value, Author):
            return f"author {value.id}"
        return DefaultJSONProvider.default(value)

    app = Flask("own")
    assert isinstance(app.json, DefaultJSONProvider)
    app.json.default = default
    assert encoded([Author(id=1), Book(id=1), DAY], app) == ["author 1", {"id": 1}, HTTP_DAY]


def test_a_provider_class_of_the_apps_own_may_build_on_ours():
    class Provider(TranseptJSONProvider):
        sort_keys = False

    class App(Flask):
        json_provider_class = Provider

    assert encoded({"b": Author(id=1, born=DAY), "a": 1}, App("own")) == {"b": {"id": 1, "born": "2026-01-02"}, "a": 1}


def test_two_transepts_on_one_app_change_its_json_once():
    app = Flask("two")
    first, second = (SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://", bind_key=key) for key in "ab")
    Transept(first, app)
    once = app.json.__dict__["default"]
    Transept(second, app)
    assert app.json.__dict__["default"] is once


def test_other_apps_write_json_as_before():
    encoded(Author(id=1))
    other = Flask("other")
    with pytest.raises(TypeError, match="Object of type Author is not JSON serializable"):
        other.json.dumps(Author(id=1))


def test_rows_of_a_sql_first_session_are_json(file: File):
    from transept.adapters.aiosqlite import AiosqliteConfig

    app = Flask("raw")
    db = Transept(AiosqliteConfig(pool_config={"database": str(file.path)}, commit_mode="autocommit"), app)

    @app.post("/")
    async def view():
        session: SQLSession = db.get_session()
        await session.execute("INSERT INTO held VALUES (?)", 1)
        return await session.select("SELECT v, date('2026-01-02') AS day FROM held")

    response = app.test_client().post("/")
    assert response.get_json() == [{"v": 1, "day": "2026-01-02"}]
    db.close()
