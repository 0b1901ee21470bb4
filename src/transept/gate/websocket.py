"""WebSockets behind the gate: a unit of work for each message."""

from __future__ import annotations

import asyncio
from typing import Protocol

from transept.context import CURRENT, LOOP, Gate, UnitScope
from transept.database import Database, Databases, Handle
from transept.gate.answer import always
from transept.gate.protocol import SCOPE_KEY, ASGIApp, BeforeSend, Message, Receive, Scope, Send
from transept.gate.state import Lazy, make_lazy

__all__ = ["Socket", "parted"]


class SocketGate(Gate, Protocol):
    """The gate that a WebSocket came through."""

    app: ASGIApp
    before_send: BeforeSend | None
    on_state: Lazy

    @property
    def registry(self) -> Databases: ...


class Socket(UnitScope):
    """One WebSocket: a unit for each message received, over the same sessions, and nothing held while the app waits.

    What the app has written is committed before the next message is awaited, and before anything is sent, so that the
    other side is never told of what may not be kept; but not inside a block, which is kept as a whole. The commit mode
    governs HTTP responses only.
    """

    host = LOOP

    def __init__(self, gate: SocketGate, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__()
        self.parting: asyncio.Future[None] | None = None
        self.gate = gate
        self.scope = scope
        self.receive_from = receive
        self.send_to = send
        scope[SCOPE_KEY] = self
        if gate.on_state:
            make_lazy(scope, self, gate.on_state)

    def origin(self) -> Gate:
        return self.gate

    def describe(self) -> str:
        return f"WebSocket {self.scope.get('path', '')}"

    async def run(self) -> None:
        token = CURRENT.set(self)
        try:
            await self.gate.app(self.scope, self.receive, self.send)
            await self.end_message()
        finally:
            try:
                await self.drop()
                if self.parting is not None:
                    await LOOP.shielded(parted(self.parting))
            finally:
                self.closed = True
                CURRENT.reset(token)

    async def drop(self) -> None:
        """What has not been settled is rolled back."""
        unit, self.unit = self.unit, None
        if unit is not None:
            await unit.close()

    async def receive(self) -> Message:
        await self.end_message()
        message = await self.receive_from()
        if message["type"] == "websocket.disconnect":
            self.client_left()
        return message

    def client_left(self) -> None:
        """What a task has open while another one receives is cut off and rolled back; what comes now is a new unit."""
        unit = self.unit
        if unit is not None and self.parting is None and not unit.blocks and unit.busy():
            self.unit = None
            self.parting = asyncio.ensure_future(unit.close())

    async def send(self, message: Message) -> None:
        if self.gate.before_send is not None:
            await self.gate.before_send(message, self.scope)
        if self.unit is not None and not self.unit.blocks:
            await self.unit.settle(always, _is_reading)
        await self.send_to(message)

    async def end_message(self) -> None:
        unit = self.unit
        if unit is not None and not unit.blocks:
            await unit.settle(always, _is_reading)
            if not unit.busy():
                unit.renew()


async def parted(parting: asyncio.Future[None]) -> None:
    """Await it, as a coroutine that a host can shield."""
    await parting


def _is_reading(database: Database, handle: Handle) -> bool:
    return handle.reading()
