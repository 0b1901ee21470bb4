"""The sessions and connections on a request's state, by their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from transept.context import UnitScope

__all__ = ["Lazy", "make_lazy"]

Lazy = dict[str, Callable[[Any], Any]]


class LazyState(MutableMapping[str, Any]):
    """The request's state, in which a session or connection is made when it is first looked at.

    A view of the mapping that was there: what middleware above and the app below write, both see.
    """

    __slots__ = ("_given", "_lazy", "_units")

    def __init__(self, given: MutableMapping[str, Any], units: UnitScope, lazy: Lazy) -> None:
        self._given = given
        self._units = units
        self._lazy = lazy

    def __getitem__(self, key: str) -> Any:
        try:
            return self._given[key]
        except KeyError:
            give = self._lazy.get(key)
            if give is None:
                raise
        return give(self._units.open())

    def __setitem__(self, key: str, value: Any) -> None:
        self._given[key] = value

    def __delitem__(self, key: str) -> None:
        del self._given[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __contains__(self, key: object) -> bool:
        return key in self._given

    def copy(self) -> LazyState:
        return LazyState(dict(self._given), self._units, self._lazy)


def make_lazy(scope: MutableMapping[str, Any], units: UnitScope, lazy: Lazy) -> None:
    if not lazy:
        return
    given: Any = scope.get("state")
    if type(given) is LazyState:  # an isinstance() of an abstract class costs more than all the rest
        lazy = {**given._lazy, **lazy}
        given = given._given
    scope["state"] = LazyState({} if given is None else given, units, lazy)
