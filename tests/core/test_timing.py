"""Interleaved timing."""

from crossguard_jax.core.timing import Timed, interleave, ratios


def test_sides_take_turns_after_two_calls_that_do_not_count():
    calls = []
    sides = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    timed = interleave(sides, range(3))
    assert "".join(calls) == "ab" + "ab" + "ababab"
    assert [len(side.seconds) for side in timed.values()] == [3, 3]


def test_ratios_are_of_neighbouring_runs():
    theirs, ours = Timed(9.0, (2.0, 6.0, 4.0)), Timed(9.0, (1.0, 2.0, 8.0))
    assert ratios(theirs, ours) == (0.5, 2.0, 3.0)
