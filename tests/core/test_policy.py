"""Which statuses are kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transept import ImproperConfigurationError
from transept.policy import Policy

statuses = st.integers(100, 599)
some_statuses = st.frozensets(statuses, max_size=5)
modes = st.sampled_from(["autocommit", "autocommit_include_redirect", "autocommit_include_redirects"])


@given(modes, statuses, some_statuses, some_statuses)
def test_extra_statuses_win_and_otherwise_the_range_decides(mode, status, commit, rollback):
    policy = Policy.of(mode, commit - rollback, rollback)
    if status in rollback:
        assert not policy.keeps(status)
    elif status in commit:
        assert policy.keeps(status)
    else:
        assert policy.keeps(status) == (200 <= status < (300 if mode == "autocommit" else 400))


@given(statuses)
def test_manual_keeps_nothing_by_itself(status):
    assert not Policy().keeps(status)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("autocomit",), ["commit_mode='autocomit'", "Did you mean 'autocommit'?"]),
        ((["autocommit"],), ["commit_mode=['autocommit']", "Allowed"]),
        (("autocommit", {201}, {201, 409}), ["must not share", "201"]),
        (("autocommit", {99}), ["extra_commit_statuses", "99"]),
        (("autocommit", None, {"404"}), ["extra_rollback_statuses", "'404'"]),
        (("autocommit", 201), ["extra_commit_statuses=201", "a set of HTTP statuses"]),
        (("manual", {201}), ["no effect", "manual"]),
    ],
)
def test_a_wrong_policy_is_refused_with_the_setting_and_the_value(arguments, words):
    with pytest.raises(ImproperConfigurationError) as caught:
        Policy.of(*arguments)
    for word in words:
        assert word in str(caught.value)
