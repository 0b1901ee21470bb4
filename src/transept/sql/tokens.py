"""The text of a statement, cut into plain parts and tokens, and the statements of a script.

Rule 1: a token is a literal, a quoted identifier, a comment, a dollar quote, what may be a placeholder, an operator
    that looks like one, a parenthesis or a semicolon. Even parts are plain, odd ones tokens; all make up the text.
Rule 2: what is not closed ends with the text; the database will say so.
Rule 3: a semicolon ends a statement unless it stands in parentheses or in the body of a routine that is created.

Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

__all__ = ["LONG", "WORD", "cut", "is_comment", "split", "statements"]

LONG = 32_768  # characters; a longer text is hardly met twice, and would fill the caches


def _nested(depth: int) -> str:
    inner = _nested(depth - 1) + "|" if depth else ""
    return rf"/\*(?:[^*/]++|{inner}\*(?!/)|/)*+(?:\*/|\Z)"


NAME = r"[^\W\d]\w*+"
NUMBER = r"[0-9]{1,5}(?!\w)"
PLAIN = "{0}(?:[^{0}]++|{0}{0})*+(?:{0}|\\Z)"
ESCAPED = r"{0}(?:[^{0}\\]++|\\(?:.|\Z)|{0}{0})*+(?:{0}|\Z)"
COMMENT = r"/\*.*?(?:\*/|\Z)"
# every alternative begins with a plain character, which lets `re` skip all others quickly: look-behinds come second
SKIPPED = {
    "postgresql": (
        # E'...' goes on after a line break, with its escapes
        r"'(?<=[eE]')(?<![\w$][eE]')(?:[^'\\]++|\\(?:.|\Z)|''|'[ \t]*+[\r\n]\s*+')*+(?:'|\Z)",
        PLAIN.format("'"),
        PLAIN.format('"'),
        r"--[^\r\n]*+",
        _nested(8),
        rf"\$(?<![\w$]\$)((?:{NAME})?)\$.*?(?:\$\2\$|\Z)",
        r"\?&(?!&)|\?\|(?!\|)|@\?",
    ),
    "mysql": (
        *(ESCAPED.format(quote) for quote in "'\""),
        PLAIN.format("`"),
        r"--(?=\s|\Z)[^\n]*+",
        r"\#[^\n]*+",
        r"/\*(?!M?!)" + COMMENT[3:],
        r"/\*M?![0-9]*+",  # what follows is code, and its end stays plain
    ),
    "sqlite": (*(PLAIN.format(quote) for quote in "'\"`"), r"\[[^\]]*+(?:\]|\Z)", r"--[^\n]*+", COMMENT),
}
MARKS = (
    r"\?\?|\?",
    r"%%|%s(?!\w)|%\(\w+\)s",
    rf"::|:(?<![\w)\]\"'`]:)(?:{NAME}|{NUMBER})",
    rf"\$(?<![\w$]\$)(?:{NAME}|{NUMBER})",
    rf"@@\w*+|@(?<!\w@){NAME}",
    r"\(|\)|;",
)
WORD = re.compile(r"[^\W\d]\w*")
KEYWORD = re.compile(r"(?<![\w.])[^\W\d]\w*")  # not what stands behind a dot
TOKEN = {name: re.compile(f"({'|'.join((*skipped, *MARKS))})", re.DOTALL) for name, skipped in SKIPPED.items()}


@lru_cache(maxsize=8)  # `render` and `kind_of` see a new text one after the other
def _cut(sql: str, dialect: str) -> list[str]:
    parts: list[str] = TOKEN[dialect].split(sql)
    if dialect == "postgresql":
        del parts[2::3]  # the tags of dollar quotes
    return parts


def cut(sql: str, dialect: str) -> list[str]:
    return _cut(sql, dialect) if len(sql) <= LONG else _cut.__wrapped__(sql, dialect)


def is_comment(token: str) -> bool:
    return token.startswith(("--", "/*", "#"))


def split(script: str, dialect: str) -> list[str]:
    """The statements of a script, without their semicolons and without those that are empty or comments alone."""
    return statements(cut(script, dialect))


def statements(parts: list[str]) -> list[str]:
    statements = []
    begin = 0
    for end in (*_ends(parts), len(parts)):
        if any(not is_comment(part) if i % 2 else part.strip() for i, part in enumerate(parts[begin:end], begin)):
            statements.append("".join(parts[begin:end]).strip())
        begin = end + 1
    return statements


def _ends(parts: list[str]) -> Iterator[int]:
    depth, body = 0, _Body()
    for i, part in enumerate(parts):
        if i % 2 == 0:
            if depth <= 0:  # in parentheses are columns and parameters, and each CASE has its END
                body.read(part)
        elif part == "(":
            depth += 1
        elif part == ")":
            depth -= 1
        elif part == ";" and depth <= 0 and body.open <= 0:
            yield i
            depth, body = 0, _Body()


class _Body:
    """How many blocks of a routine are open: their semicolons do not end the statement that creates it."""

    ROUTINES = frozenset({"TRIGGER", "FUNCTION", "PROCEDURE", "EVENT"})
    BEFORE = frozenset({"CREATE", "OR", "REPLACE", "TEMP", "TEMPORARY", "AGGREGATE", "CONSTRAINT"})
    NO_END = frozenset({"IF", "LOOP", "WHILE", "REPEAT", "FOR"})  # END IF ends no block that was counted

    def __init__(self) -> None:
        self.open = 0
        self._last = ""
        self._has_definer = False
        self._is_routine: bool | None = None  # not known before the word that names what is created

    def read(self, plain: str) -> None:
        if self._is_routine is False:
            return
        for word in KEYWORD.findall(plain.upper()):
            if self._is_routine:
                self.open += self._change(word)
            elif self._is_routine is None:
                self._decide(word)
            self._last = word

    def _decide(self, word: str) -> None:
        if not self._last and word != "CREATE":
            self._is_routine = False
        elif word in self.ROUTINES:
            self._is_routine = True
        elif word == "DEFINER":
            self._has_definer = True
        elif word not in self.BEFORE:
            # a definer may have any name; besides routines, views have one
            self._is_routine = None if self._has_definer and word != "VIEW" else False

    def _change(self, word: str) -> int:
        if self._last == "END" and word in self.NO_END:
            return 1
        if self._last == "END" and word == "CASE":
            return 0
        return -1 if word == "END" else word in ("BEGIN", "CASE")
