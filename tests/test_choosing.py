"""Choosing among measured models: the front against its definition, the guide against its table."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillkit.choosing import Budget, Variant, choose, pareto_front
from distillkit.errors import UserError


def variant(name="one", size=1e6, milliseconds=5.0, success=0.9, wide=0.02, family="distilled"):
    low, high = max(0.0, success - wide), min(1.0, success + wide)
    return Variant(name, family, size, milliseconds, success, low, high)


few = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=9
)


@given(few)
def test_the_front_is_what_nothing_beats(numbers):
    table = [variant(str(n), a, b, c / 4) for n, (a, b, c) in enumerate(numbers)]
    front = pareto_front(table)
    assert front and [each.bytes for each in front] == sorted(each.bytes for each in front)
    for each, other in product(table, table):
        no_worse = (
            other.bytes <= each.bytes
            and other.milliseconds <= each.milliseconds
            and other.success >= each.success
        )
        better = (other.bytes, other.milliseconds, other.success) != (
            each.bytes,
            each.milliseconds,
            each.success,
        )
        if no_worse and better:
            assert each not in front
    beaten = [each for each in table if each not in front]
    for each in beaten:
        assert any(
            one.bytes <= each.bytes
            and one.milliseconds <= each.milliseconds
            and one.success >= each.success
            for one in front
        )


def test_the_front_of_one_cost_leaves_the_other_out():
    slow, quick = variant("slow", 1e6, 50, 0.8), variant("quick", 2e6, 1, 0.7)
    assert pareto_front([quick, slow], ["bytes"]) == [slow]
    assert pareto_front([slow, quick], ["milliseconds"]) == [quick, slow]
    assert pareto_front([slow, quick]) == [slow, quick]
    assert pareto_front([]) == []


def test_the_guide_takes_the_best_that_fits_and_names_a_smaller_tie():
    table = [
        variant("teacher", 8e6, 30, 0.95),
        variant("student", 1.4e6, 6, 0.87),
        variant("student, int8", 0.5e6, 3, 0.86),
        variant("cut", 0.3e6, 2, 0.4),
    ]
    found = choose(table, Budget(bytes=2e6))
    assert found.best.name == "student" and [each.name for each in found.ties] == ["student, int8"]
    assert str(found).splitlines() == [
        "3 of 4 fit. Most visits: student, 87.0% [85.0%, 89.0%], 1.40 MB, 6.0 ms a turn.",
        "Not to be told from it by its visits, and smallest: student, int8, 86.0% [84.0%, 88.0%], "
        "0.50 MB, 3.0 ms a turn.",
    ]
    assert choose(table, Budget(milliseconds=2.5)).best.name == "cut"
    assert choose(table, Budget(milliseconds=2.5)).ties == []


def test_a_promise_that_the_interval_does_not_carry_is_told():
    assert "measure it with more visitors" in str(choose([variant()], Budget(success=0.89)))
    assert "measure it" not in str(choose([variant()], Budget(success=0.88)))


def test_where_nothing_fits_the_nearest_says_what_it_lacks():
    table = [variant("large", 8e6, 30, 0.95), variant("small", 1.5e6, 6, 0.87)]
    found = choose(table, Budget(bytes=1e6, success=0.8))
    assert found.best is None and found.ties == []
    assert found.sentences[1] == "Nearest is small: 1.50 MB, 1.00 are allowed."
    lacking = choose(table, Budget(bytes=1e6, milliseconds=1, success=0.9))
    assert lacking.sentences[1].count(";") in (1, 2)
    assert choose(table, Budget(success=1.0)).best is None


def test_numbers_that_nobody_can_have_measured_are_refused():
    for size, milliseconds in ((0, 1), (math.nan, 1), (math.inf, 1), (1, 0), (1, math.nan)):
        with pytest.raises(UserError, match="expected measured numbers"):
            variant(size=size, milliseconds=milliseconds)
    for success in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="expected shares"):
            Variant("x", "", 1, 1, success, 0.0, 1.0)
    with pytest.raises(UserError, match="expected shares"):
        Variant("x", "", 1, 1, 0.5, 0.6, 0.7)
    for budget in ({"bytes": 0}, {"milliseconds": -1}, {"success": 1.2}, {"bytes": math.nan}):
        with pytest.raises(UserError, match="above zero"):
            Budget(**budget)
    with pytest.raises(UserError, match="no variant"):
        choose([], Budget())
    with pytest.raises(UserError, match="expected some of"):
        pareto_front([variant()], ["success"])
