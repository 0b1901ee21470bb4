"""A session has one user at a time, and the gate is not kept waiting by those who come later."""

from __future__ import annotations

import asyncio

import pytest

from transept.adapters.sqlite import SqliteConfig
from transept.gate.asgi import ASGIGate
from transept.turn import TaskTurn

pytestmark = pytest.mark.anyio


async def test_statements_in_a_row_do_not_keep_the_gate_waiting():
    turn, order = TaskTurn(), []

    async def app():
        for number in range(3):
            while (freed := turn.take()) is not None:
                await freed
            await asyncio.sleep(0)
            order.append(number)
            turn.leave()

    async def gate():
        await turn.hold()
        order.append("settled")
        turn.release()

    statements = asyncio.create_task(app())
    await asyncio.sleep(0)
    await gate()
    await statements
    assert order == [0, "settled", 1, 2]


async def test_chunks_after_the_one_that_completes_the_length_lose_nothing():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(message):
        sent.append(message.get("body"))

    gate = ASGIGate(app, SqliteConfig(pool_config={"database": ":memory:"}))
    await gate({"type": "http", "method": "GET", "path": "/"}, None, send)
    assert sent == [None, b"hello", b"", b""]
