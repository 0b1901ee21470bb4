"""Which outcomes of a request are kept.

Rule 1: `manual` keeps nothing by itself; the app commits.
Rule 2: `autocommit` keeps 2xx, `autocommit_include_redirect` keeps 2xx and 3xx.
Rule 3: a status in `extra_commit` is kept and one in `extra_rollback` is not, whatever its range.

Nothing here does I/O, and no other module repeats these rules.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from transept.errors import ImproperConfigurationError, unknown_value

__all__ = ["CommitMode", "Policy"]

CommitMode = Literal["manual", "autocommit", "autocommit_include_redirect", "autocommit_include_redirects"]

_RANGES: dict[str, range] = {
    "manual": range(0),
    "autocommit": range(200, 300),
    "autocommit_include_redirect": range(200, 400),
    "autocommit_include_redirects": range(200, 400),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """The rule of one database. `mode` is one of :data:`CommitMode`; both spellings of the redirect mode are one.

    Raises:
        ImproperConfigurationError: an unknown mode, a status that is none, a status in both sets, or extra statuses
            with `manual`, which would have no effect.
    """

    mode: str = "manual"
    extra_commit: frozenset[int] = frozenset()
    extra_rollback: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str) or self.mode not in _RANGES:
            raise unknown_value("commit_mode", self.mode, _RANGES)
        if self.mode == "autocommit_include_redirects":
            object.__setattr__(self, "mode", "autocommit_include_redirect")
        both = self.extra_commit & self.extra_rollback
        if both:
            raise ImproperConfigurationError(
                f"extra_commit_statuses and extra_rollback_statuses must not share statuses, and both have "
                f"{', '.join(map(str, sorted(both)))}."
            )
        if self.manual and (self.extra_commit or self.extra_rollback):
            raise ImproperConfigurationError(
                "extra_commit_statuses and extra_rollback_statuses have no effect with commit_mode='manual': "
                "use 'autocommit' or 'autocommit_include_redirect', or leave them out."
            )

    @classmethod
    def of(
        cls,
        mode: str | None,
        extra_commit_statuses: Collection[int] | None = None,
        extra_rollback_statuses: Collection[int] | None = None,
    ) -> Policy:
        """The policy that settings describe; `None` means `manual` and no extra statuses."""
        return cls(
            "manual" if mode is None else mode,
            _statuses("extra_commit_statuses", extra_commit_statuses),
            _statuses("extra_rollback_statuses", extra_rollback_statuses),
        )

    @property
    def manual(self) -> bool:
        return self.mode == "manual"

    def keeps(self, status: int) -> bool:
        """Whether a response with this HTTP status commits."""
        if status in self.extra_rollback:
            return False
        return status in _RANGES[self.mode] or status in self.extra_commit


def _statuses(setting: str, given: Collection[int] | None) -> frozenset[int]:
    if given is None:
        return frozenset()
    if isinstance(given, (str, bytes)) or not isinstance(given, Collection):
        raise ImproperConfigurationError(f"{setting}={given!r}: a set of HTTP statuses such as {{201, 202}} is needed.")
    for status in given:
        if isinstance(status, bool) or not isinstance(status, int) or not 100 <= status <= 599:
            raise ImproperConfigurationError(f"{setting} has {status!r}: HTTP statuses are whole numbers 100 to 599.")
    return frozenset(given)
