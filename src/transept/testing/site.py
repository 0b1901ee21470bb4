"""Which line of the app's or the test's own code is running."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from types import FrameType

__all__ = ["call_site"]

# Wherever these are installed: what lies between a line of the app's and a connection.
LIBRARIES = {"anyio", "fastapi", "flask", "litestar", "sqlalchemy", "starlette", "transept", "werkzeug"}
INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def call_site() -> str:
    """``file:line in function`` of the innermost frame that belongs to no library; "" if there is none."""
    for frame in _frames():
        code = frame.f_code
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package not in LIBRARIES and _is_own(code.co_filename):
            return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
    return ""


@cache
def _is_own(filename: str) -> bool:
    return not filename.startswith(("<", *INSTALLED))


def _frames() -> Iterator[FrameType]:
    """From the innermost frame outwards, also where SQLAlchemy has begun a greenlet, with frames of its own."""
    frame: FrameType | None = sys._getframe(1)
    greenlets = sys.modules.get("greenlet")
    current = None if greenlets is None else greenlets.getcurrent()
    while frame is not None:
        yield frame
        frame = frame.f_back
        if frame is None and current is not None and current.parent is not None:
            current = current.parent
            frame = current.gr_frame
