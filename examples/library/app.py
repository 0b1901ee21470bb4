"""A library's loans on Flask, over SQLAlchemy: ``python3 run.py example library``.

No view commits. A 2xx answer is committed before the client sees it, anything else is rolled back; the command
`add-books` is kept as a whole, or not at all.
The database is the one that the URL in EXAMPLE_DATABASE names, else the SQLite file `example.db`. The driver in it may
be sync or async: the views are the same.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import click
import msgspec
from flask import Flask, Response, abort, jsonify, request
from sqlalchemy import CheckConstraint, ForeignKey, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from transept.extensions.flask import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig, Transept, TranseptJSONProvider

MAY_KEEP = timedelta(days=28)

# Tables


class Base(DeclarativeBase):
    pass


class Book(Base):
    __tablename__ = "books"
    __table_args__ = (CheckConstraint("copies > 0"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(unique=True)
    copies: Mapped[int]
    loans: Mapped[list[Loan]] = relationship(back_populates="book", order_by="Loan.id")


class Loan(Base):
    __tablename__ = "loans"

    id: Mapped[int] = mapped_column(primary_key=True)
    # Deferred: the database looks whether there is such a book when it is told to COMMIT, not before.
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id", deferrable=True, initially="DEFERRED"))
    reader: Mapped[str]
    due: Mapped[date]
    returned: Mapped[date | None]
    book: Mapped[Book] = relationship(back_populates="loans")


# The app and its database

url = make_url(os.environ.get("EXAMPLE_DATABASE", "sqlite:///example.db"))
Config: Any = SQLAlchemyAsyncConfig if url.get_dialect().is_async else SQLAlchemySyncConfig
db = Transept(Config(connection_string=url, commit_mode="autocommit", create_all=True, metadata=Base.metadata))

app = Flask(__name__)
app.json = TranseptJSONProvider(app)  # dates as 2030-12-31
db.init_app(app)


# What comes in


class NewBook(msgspec.Struct):
    title: str
    copies: int = 1


class NewLoan(msgspec.Struct):
    book_id: int
    reader: str


@app.errorhandler(msgspec.ValidationError)
def not_understood(error: msgspec.ValidationError) -> tuple[Any, int]:
    return {"error": str(error)}, 422


@app.errorhandler(IntegrityError)
def refused(error: IntegrityError) -> tuple[Any, int]:
    """A title that is there, no copies, a loan of no book: also where it shows only at COMMIT."""
    return {"error": "violates a constraint"}, 409


# Books and loans


@app.post("/books")
def create_book() -> tuple[Any, int]:
    new = msgspec.convert(request.get_json(), NewBook)
    book = Book(title=new.title, copies=new.copies)
    session = db.get_session()
    session.add(book)
    session.flush()
    return jsonify(book), 201


@app.get("/books")
def list_books() -> Any:
    out = select(func.count(Loan.id)).where(Loan.book_id == Book.id, Loan.returned.is_(None)).scalar_subquery()
    rows = db.get_session().execute(select(Book.id, Book.title, (Book.copies - out).label("there")).order_by(Book.id))
    return jsonify([row._asdict() for row in rows])


@app.get("/books/<int:book_id>")
def show_book(book_id: int) -> Any:
    book = db.get_session().get(Book, book_id) or abort(404)
    return {"title": book.title, "readers": [loan.reader for loan in book.loans if loan.returned is None]}


@app.post("/loans")
def lend() -> tuple[Any, int]:
    """Writes the loan, then complains if no copy is left for it."""
    new = msgspec.convert(request.get_json(), NewLoan)
    session = db.get_session()
    loan = Loan(book_id=new.book_id, reader=new.reader, due=date.today() + MAY_KEEP)
    session.add(loan)
    session.flush()
    book = session.get(Book, new.book_id, with_for_update=True)
    if book is not None and sum(one.returned is None for one in book.loans) > book.copies:
        abort(409)
    return jsonify(loan), 201


@app.post("/loans/<int:loan_id>/return")
def take_back(loan_id: int) -> tuple[str, int]:
    loan = db.get_session().get(Loan, loan_id) or abort(404)
    loan.returned = date.today()
    return "", 204


@app.get("/loans.csv")
def export() -> Response:
    """All loans, streamed while they are read."""

    def lines() -> Iterator[str]:
        yield line("title", "reader", "due", "returned")
        query = select(Book.title, Loan.reader, Loan.due, Loan.returned).join(Loan.book).order_by(Loan.id)
        for row in db.get_session().execute(query.execution_options(yield_per=100)):
            yield line(*row)

    return Response(lines(), mimetype="text/csv")


def line(*values: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


# The command line


@app.cli.command("add-books")
@click.argument("file", type=click.File())
def add_books(file: Any) -> None:
    """Add the books of a CSV file with the columns title and copies: all of them, or none."""
    session = db.get_session()
    for row in csv.DictReader(file):
        new = msgspec.convert(row, NewBook, strict=False)
        session.add(Book(title=new.title, copies=new.copies))
    session.flush()
    click.echo(f"{session.scalar(select(func.count(Book.id)))} books")
