"""Orders in SQL, over aiosqlite: ``python3 run.py example sql_first``.

No handler commits. A 2xx answer is committed before the client sees it, anything else is rolled back.
The database is the SQLite file that the URL in EXAMPLE_DATABASE names, else `example.db`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from transept import CheckViolationError, ForeignKeyViolationError, NotFoundError, Registry
from transept.adapters.aiosqlite import AiosqliteConfig
from transept.extensions.starlette import Transept

PAGE = 20  # orders

registry = Registry()
shop = registry.add_config(
    AiosqliteConfig(
        pool_config={"dsn": os.environ.get("EXAMPLE_DATABASE", "sqlite:///example.db")},
        extension_config={"starlette": {"commit_mode": "autocommit"}},
    )
)
db = Transept(registry)

SCHEMA = """
CREATE TABLE IF NOT EXISTS products (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    stock INTEGER NOT NULL CHECK (stock >= 0)
);
CREATE TABLE IF NOT EXISTS orders (
    id INTEGER PRIMARY KEY,
    product_id INTEGER NOT NULL REFERENCES products (id),
    quantity INTEGER NOT NULL CHECK (quantity > 0),
    email TEXT NOT NULL,
    placed TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS mails (order_id INTEGER NOT NULL REFERENCES orders (id), sent TEXT NOT NULL);
"""


# What comes in, and what rows become


class Wish(msgspec.Struct):
    product_id: int
    quantity: int
    email: str


@dataclass
class Order:
    id: int
    product: str
    quantity: int
    placed: datetime
    mailed: bool


ORDERS = """
SELECT orders.id, products.name AS product, orders.quantity, orders.placed,
       EXISTS (SELECT * FROM mails WHERE mails.order_id = orders.id) AS mailed
FROM orders JOIN products ON products.id = orders.product_id
"""


# Orders


async def create_order(request: Request) -> Response:
    """The order and the stock are changed together. The confirmation is mailed when the client has its answer."""
    wish = msgspec.json.decode(await request.body(), type=Wish)
    session = db.get_session(request)
    result = await session.execute(
        "INSERT INTO orders (product_id, quantity, email, placed) VALUES (:product_id, :quantity, :email, :placed)",
        {**msgspec.structs.asdict(wish), "placed": datetime.now(UTC)},
    )
    await session.execute("UPDATE products SET stock = stock - ? WHERE id = ?", wish.quantity, wish.product_id)
    order_id = result.last_inserted_id
    return JSONResponse({"id": order_id}, 201, background=BackgroundTask(send_mail, order_id))


async def send_mail(order_id: int) -> None:
    """The order is committed by now. This session is in a unit of work of its own, kept if the block ends well."""
    async with registry.provide_session(shop) as session:
        await session.execute("INSERT INTO mails (order_id, sent) VALUES (?, ?)", order_id, datetime.now(UTC))


async def list_orders(request: Request) -> Response:
    """One page of the orders, of some products if they are named, and how many there are on all pages."""
    products = [int(one) for one in request.query_params.getlist("product")]
    offset = PAGE * (int(request.query_params.get("page", 1)) - 1)
    where = "WHERE products.id IN (:products)" if products else ""
    orders, total = await db.get_session(request).select_with_total(
        f"{ORDERS} {where} ORDER BY orders.id LIMIT :page OFFSET :offset",
        {"page": PAGE, "offset": offset, **({"products": products} if products else {})},
        schema_type=Order,
    )
    return answer({"orders": orders, "total": total})


async def show_order(request: Request) -> Response:
    order = await db.get_session(request).select_one(
        f"{ORDERS} WHERE orders.id = ?", request.path_params["id"], schema_type=Order
    )
    return answer(order)


async def export_orders(request: Request) -> Response:
    """All orders, one JSON document on each line, sent while they are read."""

    async def lines() -> AsyncIterator[bytes]:
        async with db.get_session(request).stream(f"{ORDERS} ORDER BY orders.id", schema_type=Order) as orders:
            async for order in orders:
                yield msgspec.json.encode(asdict(order)) + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


async def list_products(request: Request) -> Response:
    return answer(await db.get_session(request).select("SELECT id, name, stock FROM products ORDER BY id"))


# The rest


def answer(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def error(status: int, what: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    """An exception handler that answers so."""

    async def handler(request: Request, exception: Exception) -> Response:
        return JSONResponse({"error": what}, status)

    return handler


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """The first start makes the tables and fills the shelves."""
    async with registry.provide_session() as session:
        await session.execute_script(SCHEMA)
        if not await session.select_value("SELECT count(*) FROM products"):
            await session.execute_many("INSERT INTO products (name, stock) VALUES (?, ?)", [("lamp", 10), ("chair", 4)])
    yield


app = Starlette(
    routes=[
        Route("/orders", create_order, methods=["POST"]),
        Route("/orders", list_orders),
        Route("/orders/{id:int}", show_order),
        Route("/orders.ndjson", export_orders),
        Route("/products", list_products),
    ],
    exception_handlers={
        CheckViolationError: error(409, "not enough in stock, or nothing ordered"),
        ForeignKeyViolationError: error(422, "there is no such product"),
        NotFoundError: error(404, "there is no such order"),
        msgspec.DecodeError: error(422, "product_id, quantity and email are needed"),
    },
    lifespan=lifespan,
)
db.init_app(app)
