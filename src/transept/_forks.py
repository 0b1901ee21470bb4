"""A forked process shares its parent's sockets: what pools them begins anew there, and leaves the old ones alone."""

from __future__ import annotations

import os
from typing import Any, Protocol
from weakref import WeakSet

__all__ = ["begins_anew"]


class Forked(Protocol):
    """What has connections that are no event loop's."""

    def leave_to_the_parent(self) -> Any:
        """In a forked process: begin anew, with locks that nobody holds. What it returns is kept to the end.

        If the old connections were closed, or merely forgotten, they would say goodbye to the parent's server.
        """
        ...


def begins_anew(pool: Forked) -> None:
    """From now on this will, in each process that is forked."""
    _pools.add(pool)


def _in_the_child() -> None:
    _of_parents.extend([pool.leave_to_the_parent() for pool in list(_pools)])


_pools: WeakSet[Forked] = WeakSet()
_of_parents: list[Any] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_the_child)
