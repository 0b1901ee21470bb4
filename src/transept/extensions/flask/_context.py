"""An app context that no request has: a command, a shell, a job, a test, or one inside a request."""

from __future__ import annotations

import sys
from types import FrameType

from transept.context import Gate, UnitScope
from transept.errors import UsageError
from transept.gate.answer import always
from transept.gate.served import ServingGate
from transept.hosts import from_plain_code
from transept.unit import Unit

__all__ = ["ContextScope", "ended_well", "raised_meanwhile"]

ENDING = ("transept.extensions.flask._app", "flask.ctx", "contextlib", "click.core")  # what ends an app context


class ContextScope(UnitScope):
    """Its unit of work: kept at the end of the context, or rolled back if an error ended it."""

    __slots__ = ("_gate", "around", "host")

    def __init__(self, gate: ServingGate) -> None:
        super().__init__()
        self._gate = gate
        self.host = gate.host
        self.around = sys.exc_info()[1]  # being handled already

    def origin(self) -> Gate:
        return self._gate

    def describe(self) -> str:
        return "the app context"

    def leave(self, error: BaseException | None) -> None:
        """The context ends."""
        unit = self.unit
        try:
            if unit is not None and not unit.end_idle():
                self._settle(unit, error)
        finally:
            self.end()

    def _settle(self, unit: Unit, error: BaseException | None) -> None:
        bridge = self.host.bridge
        if bridge is not None and not bridge.needed():
            bridge.portal.leave(unit.close(), f"rolling back {unit.name}")
            if error is None:
                raise UsageError(
                    "an app context was popped inside an `async def` function with work that is not committed, and "
                    "nothing can be awaited there, so it is rolled back: `await session.commit()` before, or use "
                    "`async with unit_of_work():` instead."
                )
        elif error is None:
            from_plain_code(unit, unit.finish(always), always)
        else:
            try:
                from_plain_code(unit, unit.close(), None)
            except Exception as failure:
                error.add_note(f"transept: while rolling back {unit.name}: {failure!r}")


def raised_meanwhile(scope: ContextScope) -> BaseException | None:
    """The error that ends the context, where nobody passes it on, as older versions of click do not."""
    error = sys.exc_info()[1]
    return _exit_of_click() if error is None or error is scope.around else error


def _exit_of_click() -> SystemExit | None:
    """What `click.Context.exit()` is about to raise: it closes what the command has opened, and tells it nothing."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and (module := frame.f_globals.get("__name__")) in ENDING:
        if module == "click.core" and frame.f_code.co_qualname == "Context.exit":
            return SystemExit(frame.f_locals["code"])
        frame = frame.f_back
    return None


def ended_well(error: BaseException | None) -> bool:
    """Whether this ends a context cleanly: no error, or a program that says it is done."""
    if isinstance(error, SystemExit):
        return error.code in (None, 0)
    return error is None or getattr(error, "exit_code", None) == 0  # click's Exit
