"""The demo keeps its promise, and so does its app when it is asked directly."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from servers.ports import bound
from starlette.testclient import TestClient

EXAMPLE = Path(__file__).parents[1] / "examples" / "orders"
TOLD = [
    "200 OK",
    "201 Created",
    "409 Conflict",
    "409 Conflict",
    "201 Created",
    "201 Created",
    "201 Created",
    "nothing",
    "504 Gateway Timeout",
    "2 x 201, 10 x 409",
    "200 OK",
    "200 OK",
]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


@pytest.fixture
def orders(database: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The app's module, made anew over a database of its own."""
    monkeypatch.setenv("ORDERS_DATABASE", str(database))
    spec = spec_from_file_location("orders_app", EXAMPLE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "orders_app", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def client(orders: ModuleType) -> Iterator[TestClient]:
    with TestClient(orders.app, raise_server_exceptions=False) as client:
        yield client


def rows(database: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql).fetchall()


def held(database: Path) -> tuple[list[tuple[object, ...]], ...]:
    """Stock by product, product and quantity by order, and the mails."""
    return (
        rows(database, "SELECT id, stock FROM products ORDER BY id"),
        rows(database, "SELECT id, product_id, quantity FROM orders ORDER BY id"),
        rows(database, "SELECT order_id, address FROM mails ORDER BY id"),
    )


FULL_SHELVES = [(1, 10), (2, 4)]


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    return subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", EXAMPLE / "demo.py", *arguments],
        env=environment | {"COLUMNS": "100", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.timeout(15)
def test_the_demo_keeps_its_promise_in_every_row() -> None:
    """It says so, exits with 0, and has nothing else to say."""
    run = run_demo()
    lines = run.stdout.splitlines()
    table = [[cell.strip() for cell in line.split("│")] for line in lines if line.startswith(("│ GET", "│ POST"))]
    assert (run.returncode, run.stderr) == (0, "")
    assert [told for _, _, told, *_ in table] == TOLD
    assert {kept for *_, kept, _ in table} == {"✓"}
    assert lines[-1].startswith(f"The promise was kept in all {len(TOLD)} rows")


def test_a_port_that_is_taken_is_named() -> None:
    """In one line, and without a table."""
    with bound() as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        run = run_demo("--port", port)
    assert (run.returncode, run.stdout, run.stderr) == (1, "", f"demo.py: port {port} is taken\n")


def test_an_order_is_held_and_mailed(client: TestClient, database: Path) -> None:
    """The mail is written after the answer, in a unit of its own."""
    answer = client.post("/orders", json={"product": 1, "quantity": 2, "email": "ann@example.org"})
    assert (answer.status_code, answer.json()) == (201, {"orders": [1]})
    assert held(database) == ([(1, 8), (2, 4)], [(1, 1, 2)], [(1, "ann@example.org")])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"product": 1, "quantity": 11, "email": "ann@example.org"}, 409),
        ({"product": 99, "quantity": 1, "email": "ann@example.org"}, 409),
        ({"product": 1, "quantity": -1, "email": "ann@example.org"}, 409),
        ({"product": 1}, 422),
        ([], 422),
    ],
    ids=["out of stock", "a violation at COMMIT", "a violation at once", "incomplete", "no order"],
)
def test_a_refused_order_leaves_nothing(
    client: TestClient, orders: ModuleType, database: Path, body: object, status: int
) -> None:
    """No order, no stock taken, no mail, and nobody is told of it."""
    assert client.post("/orders", json=body).status_code == status
    assert held(database) == (FULL_SHELVES, [], [])
    assert orders.outbox == []


def test_a_body_that_is_not_json_is_a_bad_request(client: TestClient) -> None:
    """The app's handler for that error answers."""
    assert client.post("/orders", content=b"{").status_code == 400


def test_an_order_is_held_though_its_mail_fails(client: TestClient, database: Path) -> None:
    """What came after the answer is rolled back alone."""
    assert client.post("/orders", json={"product": 2, "quantity": 1, "email": "nowhere"}).status_code == 201
    assert held(database) == ([(1, 10), (2, 3)], [(1, 2, 1)], [])


def test_a_nested_block_is_undone_alone(client: TestClient, orders: ModuleType, database: Path) -> None:
    """With its hook, whether it comes first, in the middle or last."""
    short = {"product": 1, "quantity": 11}
    good = {"product": 2, "quantity": 1}
    answer = client.post("/orders/batch", json=[short, good, short, good, short])
    ids = answer.json()["orders"]
    assert (answer.status_code, answer.json()["refused"]) == (201, 3)
    assert held(database) == ([(1, 10), (2, 2)], [(ids[0], 2, 1), (ids[1], 2, 1)], [])
    assert orders.outbox == ids


def test_an_order_that_is_not_paid_in_time_is_not_held(
    client: TestClient, orders: ModuleType, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler is cancelled by its own timeout, and answers."""
    monkeypatch.setattr(orders, "PATIENCE", 0.05)
    assert client.post("/orders/paid", json={"product": 1, "quantity": 1, "pays_after": 5}).status_code == 504
    assert held(database) == (FULL_SHELVES, [], [])


def test_the_export_is_complete(client: TestClient) -> None:
    """All rows, read while the body is streamed."""
    client.post("/orders/batch", json=[{"product": 1, "quantity": 1}] * 3)
    assert client.get("/orders.csv").text.splitlines() == ["id,product,quantity", "1,1,1", "2,1,1", "3,1,1"]


def test_health_does_not_touch_the_database(orders: ModuleType, database: Path) -> None:
    """Without start-up, which creates the tables, there is not even a file."""
    assert TestClient(orders.app).get("/health").json() == {"status": "ok"}
    assert not database.exists()
