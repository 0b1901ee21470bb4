"""Asks the orders app over HTTP, and after each answer looks into its database through a connection of its own."""

from __future__ import annotations

import argparse
import logging
import os
import random
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from httpx import codes
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import event
from sqlalchemy.pool import Pool

HOST = "127.0.0.1"
PRODUCTS = {1: "lamp", 2: "chair"}
SERVER_LOG = logging.getLogger("uvicorn.error")
ONE_REQUEST_EACH = httpx.Limits(max_keepalive_connections=0)


@dataclass(frozen=True)
class Case:
    """A request to try. `patience`: the seconds after which its client leaves; `mails`: how many it should cause."""

    request: str
    title: str
    body: Any = None
    clients: int = 1
    patience: float = 20
    mails: int = 0


def order(product: int, quantity: int, **more: Any) -> dict[str, Any]:
    return {"product": product, "quantity": quantity, **more}


CASES = [
    Case("GET /health", "asks the database nothing"),
    Case("POST /orders", "mails a confirmation afterwards", order(1, 2, email="ann@example.org"), mails=1),
    Case("POST /orders", "writes first, then is refused", order(1, 100)),
    Case("POST /orders", "breaks a rule, which shows at COMMIT", order(99, 1, email="ann@example.org")),
    Case("POST /orders", "its mail fails, after the answer", order(2, 1, email="nowhere")),
    Case("POST /orders/batch", "one of its nested blocks fails", [order(2, 1), order(1, 100)]),
    Case("POST /orders/paid", "waits until it is paid", order(1, 1, pays_after=0.1)),
    Case("POST /orders/paid", "its client leaves before that", order(1, 1, pays_after=0.9), patience=0.2),
    Case("POST /orders/paid", "runs into a timeout", order(1, 1, pays_after=5)),
    Case("POST /orders", "12 clients at once", order(2, 1), clients=12),
    Case("GET /orders.csv", "streams while it reads"),
    Case("GET /outbox", "what after_commit hooks were told"),
]


@dataclass(frozen=True)
class Held:
    """What the database holds: stock by product, product and quantity by order, the order of each mail."""

    stock: dict[int, int]
    orders: dict[int, tuple[int, int]]
    mails: list[int]

    @classmethod
    def by(cls, database: sqlite3.Connection) -> Held:
        orders = database.execute("SELECT id, product_id, quantity FROM orders")
        return cls(
            dict(database.execute("SELECT id, stock FROM products")),
            {number: (product, quantity) for number, product, quantity in orders},
            [number for (number,) in database.execute("SELECT order_id FROM mails")],
        )


@dataclass
class Outcome:
    """What one case came to: the answers, what was held before and after, the connections taken meanwhile."""

    case: Case
    answers: list[httpx.Response | None]
    before: Held
    after: Held
    connections: int
    told: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.told = sorted(number for answer in self.answers for number in orders_in(answer))

    @property
    def new(self) -> list[int]:
        return sorted(self.after.orders.keys() - self.before.orders.keys())

    def kept(self) -> bool:
        """Whether what was told is what is held, no more and no less."""
        if self.case.request == "GET /health":
            return self.before == self.after and self.connections == 0
        if self.case.request.startswith("GET"):
            return self.before == self.after and self.told == sorted(self.after.orders)
        taken = Counter[int]()
        for number in self.new:
            product, quantity = self.after.orders[number]
            taken[product] += quantity
        stock = {product: left - taken[product] for product, left in self.before.stock.items()}
        mails = self.after.mails[len(self.before.mails) :]
        return self.told == self.new and self.after.stock == stock and mails == self.told[: self.case.mails]


def orders_in(answer: httpx.Response | None) -> list[int]:
    """The orders that an answer tells of."""
    if answer is None or not answer.is_success:
        return []
    if answer.headers["content-type"].startswith("text/csv"):
        return [int(line.partition(",")[0]) for line in answer.text.splitlines()[1:]]
    return list(answer.json().get("orders", []))


# Serving and asking


@contextmanager
def served(port: int | None) -> Iterator[tuple[uvicorn.Server, str]]:
    """The app, served from a thread; with its address."""
    from app import app  # reads the name of its database

    with closing(listening(port)) as sock:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        address = f"http://{HOST}:{sock.getsockname()[1]}"
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise SystemExit("demo.py: the app did not start")
                time.sleep(0.01)
            yield server, address
        finally:
            server.should_exit = True
            thread.join()


def listening(port: int | None) -> socket.socket:
    """A socket on this port, or on a free one below those that outgoing connections get."""
    for candidate in [port] if port is not None else random.sample(range(20000, 32768), 200):
        sock = socket.socket()
        if os.name != "nt":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, candidate))
            sock.listen()
        except OSError:
            sock.close()
        else:
            return sock
    raise SystemExit(f"demo.py: port {port} is taken" if port is not None else "demo.py: no free port")


def tried(server: uvicorn.Server, address: str, database: sqlite3.Connection) -> Iterator[Outcome]:
    """Each case in turn. What a case came to is looked at when the server has nothing left to do."""
    checkouts: list[None] = []

    def taken(*_: Any) -> None:
        checkouts.append(None)

    event.listen(Pool, "checkout", taken)
    SERVER_LOG.setLevel(logging.CRITICAL)  # one background task fails, and is meant to
    try:
        with (
            httpx.Client(base_url=address, trust_env=False, limits=ONE_REQUEST_EACH) as client,
            ThreadPoolExecutor() as threads,
        ):
            for case in CASES:
                checkouts.clear()
                before = Held.by(database)
                answers = list(threads.map(lambda _, case=case: ask(client, case), range(case.clients)))
                while server.server_state.tasks:
                    time.sleep(0.01)
                yield Outcome(case, answers, before, Held.by(database), len(checkouts))
    finally:
        SERVER_LOG.setLevel(logging.ERROR)
        event.remove(Pool, "checkout", taken)


def ask(client: httpx.Client, case: Case) -> httpx.Response | None:
    """The answer, or None if the client left before there was one."""
    method, _, path = case.request.partition(" ")
    try:
        return client.request(method, path, json=case.body, timeout=case.patience)
    except httpx.ReadTimeout:
        return None


# Showing


def table_of(outcomes: list[Outcome], console: Console) -> Table:
    title = "What the client is told, and what the database holds"
    table = Table(title=title, title_style="bold", box=box.ROUNDED, width=min(console.width, 100))
    table.add_column("request", ratio=38)
    table.add_column("the client was told", ratio=22)
    table.add_column("the database holds", ratio=22)
    table.add_column("kept?", justify="center", width=5)
    tick, cross = ("\N{CHECK MARK}", "\N{BALLOT X}") if console.encoding.startswith("utf") else ("yes", "NO")
    for one in outcomes:
        mark = f"[bold green]{tick}" if one.kept() else f"[bold red]{cross}"
        table.add_row(asked(one.case), told(one), held(one), mark, end_section=True)
    return table


def asked(case: Case) -> str:
    wishes = case.body if isinstance(case.body, list) else [case.body] if case.body else []
    goods = ", ".join(counted(wish["quantity"], product(wish["product"])) for wish in wishes)
    return f"[bold]{case.request}[/] {goods}\n[dim]{case.title}[/]"


def told(outcome: Outcome) -> str:
    statuses = Counter(answer.status_code for answer in outcome.answers if answer is not None)
    if not statuses:
        return f"nothing\n[dim]left after {outcome.case.patience} s[/]"
    if len(outcome.answers) > 1:
        head = ", ".join(f"{number} x {coloured(status)}" for status, number in sorted(statuses.items()))
    else:
        head = " ".join(coloured(status, codes.get_reason_phrase(status)) for status in statuses)
    return f"{head}\n{numbered(outcome.told) or complaint(outcome.answers[0])}"


def held(outcome: Outcome) -> str:
    before, after = outcome.before, outcome.after
    if outcome.case.request == "GET /health":
        return f"[dim]not asked[/]\n{counted(outcome.connections, 'connection')} taken"
    if outcome.case.request.startswith("GET"):
        return f"[dim]as before[/]\n{numbered(sorted(after.orders))}"
    new = [numbered(outcome.new)] if outcome.new else []
    if new and "email" in outcome.case.body:
        new.append(counted(len(after.mails) - len(before.mails), "mail"))
    left = [counted(stock, product(number)) for number, stock in after.stock.items() if stock != before.stock[number]]
    lines = [", ".join(new), f"{', '.join(left)} left" if left else ""]
    return "\n".join(filter(None, lines)) or "[dim]as before[/]"


def complaint(answer: httpx.Response | None) -> str:
    is_json = answer is not None and answer.headers.get("content-type") == "application/json"
    return escape(answer.json().get("error", "")) if answer is not None and is_json else ""


def coloured(status: int, phrase: str = "") -> str:
    return f"[{'green' if status < 300 else 'yellow'}]{status}[/] {phrase}".rstrip()


def product(number: int) -> str:
    return PRODUCTS.get(number, f"of product {number}")


def counted(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}" if number == 1 or " " in noun else f"{number or 'no'} {noun}s"


def numbered(orders: list[int]) -> str:
    """``[1]`` is order 1, and ``[1, 2, 3]`` are orders 1 to 3."""
    if len(orders) > 2 and orders == list(range(orders[0], orders[-1] + 1)):
        return f"orders {orders[0]} to {orders[-1]}"
    return f"order{'s' if len(orders) > 1 else ''} {', '.join(map(str, orders))}" if orders else ""


def verdict(outcomes: list[Outcome]) -> str:
    broken = [one for one in outcomes if not one.kept()]
    if broken:
        return f"[bold red]The promise was broken in {len(broken)} of {len(outcomes)} rows."
    return f"[bold green]The promise was kept in all {len(outcomes)} rows:[/] what was told is what is held."


def invitation(address: str, database: Path) -> str:
    return f"""
Serving {address} until Ctrl-C, from {escape(str(database))}

  {address}/products
  {address}/orders.csv
  {address}/outbox

[dim]# kept[/]
curl -i {address}/orders -d '{{"product": 1, "quantity": 1, "email": "ann@example.org"}}'

[dim]# not kept: there is no product 99, which shows only at COMMIT[/]
curl -i {address}/orders -d '{{"product": 99, "quantity": 1}}'
"""


def wait_for_ctrl_c() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the server up afterwards, until Ctrl-C")
    parser.add_argument("--port", type=int, help="serve on this port of 127.0.0.1 (default: a free one)")
    options = parser.parse_args()

    console = Console(highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="transept-demo-", ignore_cleanup_errors=True) as folder,
        closing(sqlite3.connect(Path(folder, "orders.db"), isolation_level=None)) as database,
    ):
        os.environ["ORDERS_DATABASE"] = str(Path(folder, "orders.db"))
        with served(options.port) as (server, address):
            outcomes = list(tried(server, address, database))
            console.print(table_of(outcomes, console), verdict(outcomes), sep="\n")
            if options.keep:
                console.print(invitation(address, Path(folder, "orders.db")), soft_wrap=True)
                wait_for_ctrl_c()
    return 0 if all(one.kept() for one in outcomes) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
