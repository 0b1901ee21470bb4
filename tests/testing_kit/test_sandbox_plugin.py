"""The pytest plugin, in runs of its own."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from importlib.metadata import entry_points

import pytest
from starlette.testclient import TestClient
from test_docs import ROOT, script
from testing_kit.conftest import Use, cells

from transept import unit_of_work
from transept.testing import Connections, Sandbox

INSTALLED = any(one.value == "transept.testing.plugin" for one in entry_points(group="pytest11"))

MODULE = """
import pytest
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from transept import unit_of_work
from transept.extensions.starlette import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig, Transept

database = SQLAlchemyAsyncConfig(connection_string="postgresql+asyncpg://{where}", commit_mode="autocommit")
other = SQLAlchemySyncConfig(
    connection_string="postgresql+psycopg://{where}", commit_mode="autocommit", bind_key="other"
)


async def write(request):
    session = request.state.db_session
    await session.execute(text("INSERT INTO held VALUES (1)"))
    return PlainTextResponse(str(await session.scalar(text("SELECT count(*) FROM held"))))


app = Starlette(routes=[Route("/", write, methods=["POST"])])
Transept([database, other], app)


@pytest.fixture(autouse=True)
def sandbox(transept_sandbox):
    return transept_sandbox(database, other)

"""
KEPT = """
@pytest.mark.parametrize("n", range(40))
def test_each_begins_with_nothing(n):
    client = TestClient(app)
    assert [client.post("/").text for _ in range(2)] == ["1", "2"]


def test_the_other_colour(sandbox):
    with sandbox.session(other) as session:
        session.execute(text("INSERT INTO held VALUES (1)"))
    with sandbox.session(other) as session:
        assert session.scalar(text("SELECT count(*) FROM held")) == 1
"""
LEAKS = """
left = []


def test_leaves_a_transaction_open():
    left.append(unit_of_work())
    unit = left[0].__enter__()
    unit.session(other).execute(text("INSERT INTO held VALUES (1)"))  # this line


def test_the_next_one_is_fine():
    assert TestClient(app).post("/").text == "1"
"""


def run(folder, engine, tests: str, *options: str) -> str:
    """What pytest says about a module with these tests."""
    where = engine.url("x").partition("://")[2]
    return run_module(folder, MODULE.format(where=where) + tests, *options)


def run_module(folder, code: str, *options: str) -> str:
    (folder / "test_app.py").write_text(code, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", "utf-8")
    plugin = () if INSTALLED else ("-p", "transept.testing.plugin")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *plugin, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50, check=False)
    return done.stdout + done.stderr


def test_each_test_begins_with_nothing(tmp_path, postgres_cell):
    assert "41 passed" in run(tmp_path, postgres_cell.engine, KEPT)
    assert postgres_cell.engine.held() == []
    assert postgres_cell.engine.open_transactions() == 0


def test_workers_of_xdist_share_one_database(tmp_path, postgres_cell):
    said = run(tmp_path, postgres_cell.engine, KEPT, "-n", "2")
    assert "41 passed" in said, said
    assert postgres_cell.engine.held() == []
    assert postgres_cell.engine.open_transactions() == 0


def test_a_leak_fails_its_test_alone_and_names_the_line(tmp_path, postgres_cell):
    said = run(tmp_path, postgres_cell.engine, LEAKS)
    [line] = [n for n, code in enumerate((MODULE + LEAKS).splitlines(), 1) if code.endswith("# this line")]
    assert f"test_app.py:{line} in test_leaves_a_transaction_open" in said
    assert "2 passed, 1 error" in said, said
    assert "ERROR test_app.py::test_leaves_a_transaction_open" in said
    assert postgres_cell.engine.held() == []


def test_the_plugin_costs_a_run_without_databases_nothing():
    code = """if True:
        import sys, pytest, transept
        old = {*sys.modules}
        import transept.testing.plugin
        print(sorted({*sys.modules} - old))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['transept.testing', 'transept.testing.plugin']\n"


@pytest.mark.parametrize("cell", [name for name in cells() if "postgres" in name or "sqlite-" in name], indirect=True)
def test_a_thousand_tests_share_one_schema_and_leave_nothing(cell):
    """Each with a sandbox, a request that commits and a look at it; all on one connection."""
    rounds = 1000 if cell.family.name in ("alchemy-async", "alchemy-sync") and cell.engine.name == "postgres" else 100

    async def write(use: Use) -> None:
        await use.insert(1)
        seen.append(await use.count())

    database = cell.database()
    app = cell.app(database, {"write": write})
    connections = Connections()
    seen = []
    begun = time.perf_counter()
    with TestClient(app) as client:
        for _ in range(rounds):
            with Sandbox(database, connections=connections):
                assert client.post("/write").status_code == 200
    took = time.perf_counter() - begun
    connections.close()
    assert seen == [1] * rounds
    assert cell.engine.held() == []
    assert cell.engine.open_transactions() == 0
    assert took < 30


def test_connections_go_with_their_database(postgres_cell):
    connections = Connections()
    database = postgres_cell.database()
    app = postgres_cell.app(database, {"write": write})
    with Sandbox(database, connections=connections):
        postgres_cell.post(app, "write")
    ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    assert postgres_cell.engine._look.execute(ours).fetchone() == (2,)
    postgres_cell.made.clear()
    del database, app
    gc.collect()
    connections.close()
    assert postgres_cell.engine._look.execute(ours).fetchone() == (1,)


async def write(use: Use) -> None:
    await use.insert(1)


def test_a_sandbox_that_nobody_uses_opens_no_connection(postgres_cell):
    database = postgres_cell.database()
    count = "SELECT count(*) FROM pg_stat_activity"
    before = postgres_cell.engine._look.execute(count).fetchone()
    with Sandbox(database), unit_of_work():
        assert postgres_cell.engine._look.execute(count).fetchone() == before


def test_raw_databases_need_no_sqlalchemy():
    code = """if True:
        import sys
        sys.modules["sqlalchemy"] = None
        from transept.adapters.sqlite import SqliteConfig
        from transept.testing import Sandbox
        database = SqliteConfig(pool_config={"database": ":memory:"})
        with Sandbox(database) as sandbox, sandbox.session(database) as session:
            print(session.select_value("SELECT 1"))
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr


def test_the_tests_in_the_guide_pass(tmp_path):
    said = run_module(tmp_path, script(ROOT / "docs" / "how-to" / "testing.md", run=True))
    assert "5 passed" in said, said
