"""The mistakes in `contract/mutants.txt` can still be made. Whether each is found, `contract/mutants.py` tells."""

from __future__ import annotations

from contract.mutants import Mutant, everyone, out_of_date, uncovered


def test_every_mutant_matches_the_code_and_every_case_has_one() -> None:
    assert out_of_date(everyone()) + uncovered(everyone()) == []


def test_a_mutant_that_names_what_is_not_there_is_found() -> None:
    stale = Mutant.read(
        "a-mistake\n"
        "file: policy.py\n"
        "cells: starlette/alchemy-async/sqlite starlette/nowhere\n"
        "red: other_statuses_keep_nothing no_such_case\n"
        "-no such code\n"
    )
    assert out_of_date([stale]) == [
        "a-mistake: found 0 times in policy.py:\nno such code\n",
        "a-mistake: none of its cases applies in starlette/nowhere",
        "a-mistake: no_such_case applies in none of its cells",
    ]
    assert "no mutant for a_2xx_is_told_after_its_commit" in uncovered([stale])
