"""An auction on Litestar, over SQLAlchemy and aiosqlite: ``python3 run.py example auction``.

No handler commits. A 2xx answer is committed before the client sees it, anything else is rolled back; a bid that comes
by WebSocket is committed before it is acknowledged.
The database is the one that the URL in EXAMPLE_DATABASE names, else the SQLite file `example.db`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Litestar, Request, Response, WebSocket, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.exceptions import ClientException, NotFoundException
from litestar.params import Body
from litestar.response import Stream
from sqlalchemy import CheckConstraint, ForeignKey, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from transept import db_session as session_of
from transept import in_new_unit, unit_of_work
from transept.extensions.litestar import SQLAlchemyAsyncConfig, Transept

try:
    from litestar.di import NamedDependency
except ImportError:  # Litestar before 2.23, which needs no mark
    NamedDependency = Annotated[TypeVar("T"), "injected"]

InShop = NamedDependency[AsyncSession]


# Tables


class Base(DeclarativeBase):
    pass


class Lot(Base):
    __tablename__ = "lots"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Bid(Base):
    __tablename__ = "bids"
    __table_args__ = (CheckConstraint("amount > 0"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    # Deferred: the database looks whether there is such a lot when it is told to COMMIT, not before.
    lot_id: Mapped[int] = mapped_column(ForeignKey("lots.id", deferrable=True, initially="DEFERRED"))
    amount: Mapped[int]
    bidder: Mapped[str]


class Mail(Base):
    __tablename__ = "mails"

    id: Mapped[int] = mapped_column(primary_key=True)
    bidder: Mapped[str]
    lot_id: Mapped[int] = mapped_column(ForeignKey("lots.id"))


shop = SQLAlchemyAsyncConfig(
    connection_string=os.environ.get("EXAMPLE_DATABASE", "sqlite+aiosqlite:///example.db"),
    before_send_handler="autocommit",
    create_all=True,
    metadata=Base.metadata,
)
db = Transept(shop)


# What comes in and goes out


@dataclass
class NewLot:
    name: str


@dataclass
class NewBid:
    amount: int
    bidder: str


@dataclass
class LotNow:
    id: int
    name: str
    highest: int | None


# Lots and bids


class TooLowError(ClientException):
    status_code = 409


@post("/lots")
async def create_lot(data: Annotated[NewLot, Body()], db_session: InShop) -> LotNow:
    lot = Lot(name=data.name)
    db_session.add(lot)
    await db_session.flush()
    return LotNow(lot.id, lot.name, None)


@get("/lots")
async def list_lots(db_session: InShop) -> list[LotNow]:
    rows = await db_session.execute(
        select(Lot.id, Lot.name, func.max(Bid.amount)).outerjoin(Bid).group_by(Lot.id).order_by(Lot.id)
    )
    return [LotNow(*row) for row in rows]


async def place_bid(session: AsyncSession, lot_id: int, bid: NewBid) -> str | None:
    """Writes the bid, then complains if it was too low. Returns who has been outbid."""
    before = await session.scalar(select(Bid).where(Bid.lot_id == lot_id).order_by(Bid.amount.desc()).limit(1))
    session.add(Bid(lot_id=lot_id, amount=bid.amount, bidder=bid.bidder))
    await session.flush()
    if before is not None and before.amount >= bid.amount:
        raise TooLowError(f"more than {before.amount} is needed")
    return None if before is None else before.bidder


def no_such_lot(request: Request[Any, Any, Any], error: IntegrityError) -> Response[dict[str, str]]:
    return Response({"error": "there is no such lot, or the bid is not above 0"}, status_code=422)


@post("/lots/{lot_id:int}/bids", exception_handlers={IntegrityError: no_such_lot})
async def bid(
    request: Request[Any, Any, Any], data: Annotated[NewBid, Body()], db_session: InShop
) -> Response[dict[str, Any]]:
    """One bid. Whoever has been outbid gets a mail when the bidder has the answer."""
    lot_id: int = request.path_params["lot_id"]
    outbid = await place_bid(db_session, lot_id, data)
    mail = BackgroundTask(send_mail, outbid, lot_id) if outbid else None
    return Response(asdict(data), background=mail)


@in_new_unit
async def send_mail(bidder: str, lot_id: int) -> None:
    """The request is over and its work is kept. This is a unit of work of its own, kept if it returns."""
    session = await session_of(shop)
    session.add(Mail(bidder=bidder, lot_id=lot_id))


@websocket("/lots/{lot_id:int}/live")
async def live(socket: WebSocket[Any, Any, Any], db_session: InShop) -> None:
    """Bids as they come: each is kept before it is acknowledged, and one that is too low is undone alone."""
    lot_id: int = socket.path_params["lot_id"]
    await socket.accept()
    if await db_session.get(Lot, lot_id) is None:
        await socket.close(4404, "there is no such lot")
        return
    async for message in socket.iter_data("text"):
        try:
            async with unit_of_work():
                await place_bid(db_session, lot_id, msgspec.json.decode(message, type=NewBid))
        except (TooLowError, IntegrityError, msgspec.DecodeError):
            await socket.send_text("refused")
        else:
            await socket.send_text("kept")


@get("/lots/{lot_id:int}/bids.csv")
async def export_bids(request: Request[Any, Any, Any], db_session: InShop) -> Stream:
    """All bids for a lot, streamed while they are read."""
    lot_id: int = request.path_params["lot_id"]
    if await db_session.get(Lot, lot_id) is None:
        raise NotFoundException

    async def lines() -> AsyncIterator[str]:
        yield "amount,bidder\n"
        query = select(Bid.amount, Bid.bidder).where(Bid.lot_id == lot_id).order_by(Bid.id)
        async for row in await db_session.stream(query):
            yield f"{row.amount},{row.bidder}\n"

    return Stream(lines(), media_type="text/csv")


@get("/mails")
async def list_mails(db_session: InShop) -> list[str]:
    return list(await db_session.scalars(select(Mail.bidder).order_by(Mail.id)))


# The rest


def taken(request: Request[Any, Any, Any], error: IntegrityError) -> Response[dict[str, str]]:
    return Response({"error": "violates a constraint"}, status_code=409)


app = Litestar(
    [create_lot, list_lots, bid, live, export_bids, list_mails],
    plugins=[db],
    exception_handlers={IntegrityError: taken},
)
