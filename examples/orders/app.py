"""Orders and stock: a small Starlette app whose answers are what its database holds.

    uvicorn app:app

No handler commits. A 2xx answer is committed before the client sees it, anything else is rolled back.
The database is the SQLite file named by the environment variable ORDERS_DATABASE, else `orders.db`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from json import JSONDecodeError
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from transept import after_commit, unit_of_work
from transept.extensions.starlette import SQLAlchemyAsyncConfig, Transept

DATABASE = os.environ.get("ORDERS_DATABASE", "orders.db")
PATIENCE = 1  # seconds to wait for a payment


# Tables


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "products"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    stock: Mapped[int]


class Order(Base):
    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("quantity > 0"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    # Deferred: the database looks whether there is such a product when it is told to COMMIT, not before.
    product_id: Mapped[int] = mapped_column(ForeignKey("products.id", deferrable=True, initially="DEFERRED"))
    quantity: Mapped[int]


class Mail(Base):
    __tablename__ = "mails"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    address: Mapped[str]


alchemy = Transept(
    SQLAlchemyAsyncConfig(
        connection_string=f"sqlite+aiosqlite:///{DATABASE}",
        commit_mode="autocommit",
        create_all=True,
        metadata=Base.metadata,
    )
)
outbox: list[int] = []  # ids of the orders that other systems are told of


# Orders


class OutOfStockError(Exception):
    pass


class BadWishError(Exception):
    pass


class BadAddressError(Exception):
    pass


@dataclass(frozen=True)
class Wish:
    """What a client wants to order."""

    product: int
    quantity: int
    email: str = ""
    pays_after: float = 0

    @classmethod
    def of(cls, body: Any) -> Wish:
        try:
            product, quantity = int(body["product"]), int(body["quantity"])
            return cls(product, quantity, str(body.get("email", "")), float(body.get("pays_after", 0)))
        except (KeyError, TypeError, ValueError) as error:
            raise BadWishError from error


async def place_order(session: AsyncSession, wish: Wish) -> Order:
    """Takes from stock and writes the order, then complains if there was not enough."""
    stock = await session.scalar(
        update(Product)
        .where(Product.id == wish.product)
        .values(stock=Product.stock - wish.quantity)
        .returning(Product.stock)
    )
    order = Order(product_id=wish.product, quantity=wish.quantity)
    session.add(order)
    await session.flush()
    after_commit(partial(outbox.append, order.id))
    if stock is not None and stock < 0:
        raise OutOfStockError
    return order


async def create_order(request: Request) -> Response:
    """One order. Its confirmation is mailed when the client has its answer."""
    wish = Wish.of(await request.json())
    order = await place_order(alchemy.get_async_session(request), wish)
    mail = BackgroundTask(send_mail, request, order.id, wish.email) if wish.email else None
    return JSONResponse({"orders": [order.id]}, 201, background=mail)


async def send_mail(request: Request, order_id: int, address: str) -> None:
    """The request's work is committed by now: this session is a fresh one, kept if the task returns."""
    session = alchemy.get_async_session(request)
    session.add(Mail(order_id=order_id, address=address))
    await session.flush()
    if "@" not in address:
        raise BadAddressError(address)


async def create_batch(request: Request) -> Response:
    """Several orders, each in a block of its own: one that fails is undone alone, the others are kept."""
    session = alchemy.get_async_session(request)
    wishes = [Wish.of(body) for body in await request.json()]
    orders: list[int] = []
    for wish in wishes:
        try:
            async with unit_of_work():
                order = await place_order(session, wish)
        except OutOfStockError:
            continue
        orders.append(order.id)
    return JSONResponse({"orders": orders, "refused": len(wishes) - len(orders)}, 201)


async def create_paid_order(request: Request) -> Response:
    """An order that waits for its payment: briefly, since nobody else can write to SQLite meanwhile."""
    wish = Wish.of(await request.json())
    order = await place_order(alchemy.get_async_session(request), wish)
    try:
        async with asyncio.timeout(PATIENCE):
            if not await payment(request, wish.pays_after):
                return Response()  # a success that nobody hears, and so it is not kept
    except TimeoutError:
        return JSONResponse({"error": "not paid in time"}, 504)
    return JSONResponse({"orders": [order.id]}, 201)


async def payment(request: Request, seconds: float) -> bool:
    """Stands for asking a payment service until it says yes; False if the client leaves meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if await request.is_disconnected():
            return False
        await asyncio.sleep(0.02)
    return True


async def export_orders(request: Request) -> Response:
    """All orders, streamed while they are read."""

    async def lines() -> AsyncIterator[str]:
        session = alchemy.get_async_session(request)
        yield "id,product,quantity\n"
        rows = await session.stream(select(Order.id, Order.product_id, Order.quantity).order_by(Order.id))
        async for row in rows:
            yield f"{row.id},{row.product_id},{row.quantity}\n"

    return StreamingResponse(lines(), media_type="text/csv")


# The rest


async def list_products(request: Request) -> Response:
    products = await alchemy.get_async_session(request).scalars(select(Product).order_by(Product.id))
    return JSONResponse([{"id": one.id, "name": one.name, "stock": one.stock} for one in products])


async def show_outbox(request: Request) -> Response:
    return JSONResponse({"orders": outbox})


async def health(request: Request) -> Response:
    """Takes no connection, as any handler that asks the database nothing."""
    return JSONResponse({"status": "ok"})


def answer(status: int, error: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    """An exception handler that answers so."""

    async def handler(request: Request, exception: Exception) -> Response:
        return JSONResponse({"error": error}, status)

    return handler


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """The first start fills the shelves."""
    async with alchemy.with_async_session() as session:
        if await session.get(Product, 1) is None:
            session.add_all([Product(id=1, name="lamp", stock=10), Product(id=2, name="chair", stock=4)])
    yield


app = Starlette(
    routes=[
        Route("/health", health),
        Route("/products", list_products),
        Route("/orders", create_order, methods=["POST"]),
        Route("/orders/batch", create_batch, methods=["POST"]),
        Route("/orders/paid", create_paid_order, methods=["POST"]),
        Route("/orders.csv", export_orders),
        Route("/outbox", show_outbox),
    ],
    exception_handlers={
        OutOfStockError: answer(409, "not enough in stock"),
        IntegrityError: answer(409, "violates a constraint"),  # also when that shows only at COMMIT
        BadWishError: answer(422, "product and quantity must be numbers"),
        JSONDecodeError: answer(400, "not JSON"),
    },
    lifespan=lifespan,
)
alchemy.init_app(app)
