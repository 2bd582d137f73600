"""Who is gone, stuck or has failed is named, and ends the others."""

import socket
import threading

import pytest

from crossguard_jax.runtime import watchdog
from crossguard_jax.runtime.board import until_refused
from crossguard_jax.runtime.exits import AGAIN
from crossguard_jax.runtime.watchdog import LOST, STUCK, Seen, Watchdog, judge
from tests.runtime.boards import Left, Memory, left


def seen(beat: float = 0.0, moved: float = 0.0, moves: int = 5, place: str = "step 3") -> Seen:
    return Seen(beat, moved, "", moves, place)


@pytest.mark.parametrize(
    ("beats", "line"),
    [
        ([seen(), seen()], ""),
        ([seen(), seen(beat=-LOST - 1)], "process 1 is gone or stands still in step 3"),
        ([seen(), seen(beat=-LOST - 1, place="")], "process 1 is gone or stands still: no sign"),
        # Long in one place, but one moves: it is not waited for in vain.
        ([seen(moved=-STUCK - 1), seen()], ""),
        (
            [seen(moved=-STUCK - 1, moves=7), seen(moved=-STUCK - 9, moves=6, place="the data")],
            "process 1 is stuck in the data and the others wait for it",
        ),
        # Loading or exporting: nobody says how long that may take.
        ([seen(moved=-STUCK - 1), seen(moved=-STUCK - 1, place="")], ""),
        ([], ""),
    ],
)
def test_who_holds_up_the_others_is_named(beats: list[Seen], line: str) -> None:
    verdict = judge(dict(enumerate(beats)), 0.0, LOST, STUCK)
    assert verdict.startswith(line) and bool(verdict) == bool(line)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(watchdog.time, "sleep", lambda seconds: None)
    return clock


def dogs(count: int) -> list[Watchdog]:
    board = Memory()
    return [Watchdog(board, i, count, end=left) for i in range(count)]


def test_one_that_beats_no_more_ends_all_others(clock: list[float]) -> None:
    first, silent, third = dogs(3)
    for dog in (first, silent, third, first):
        dog.beat()
    clock[0] += LOST + 1
    line = f"^{AGAIN} process 1 is gone or stands still"
    with pytest.raises(Left, match=line):
        first.beat()
    with pytest.raises(Left, match=line):
        third.beat()


def test_one_that_never_beat_counts_from_the_start(clock: list[float]) -> None:
    first, _ = dogs(2)
    clock[0] += LOST + 1
    with pytest.raises(Left, match="process 1 is gone"):
        first.beat()


def test_one_that_is_done_is_not_lost(clock: list[float]) -> None:
    first, other = dogs(2)
    for dog in (first, other):
        dog.beat()
    other.rest()
    clock[0] += LOST + 1
    first.beat()
    first.rest()
    clock[0] += LOST + 1
    for dog in (first, other):
        dog.beat()
        dog.look()


def test_the_first_one_gone_is_seen_without_the_board_it_serves(clock: list[float]) -> None:
    first, other = dogs(2)
    first.beat()
    other.beat()
    clock[0] += LOST + 1
    first.look()
    with pytest.raises(Left, match=f"^{AGAIN} process 0 has given no sign"):
        other.look()


@pytest.mark.parametrize("closed", [0, 3])
def test_only_one_who_refuses_a_connection_is_gone(closed: int) -> None:
    """Not one who ends connections in which nothing is said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        holds = threading.Thread(target=until_refused, args=(address,), daemon=True)
        holds.start()
        for _ in range(closed):
            server.accept()[0].close()
        line, _ = server.accept()
        assert holds.is_alive()
    line.close()
    holds.join(60)
    assert not holds.is_alive()


def test_the_first_one_killed_is_named_by_whoever_holds_its_board() -> None:
    _, other = dogs(2)
    with pytest.raises(Left, match=f"^{AGAIN} process 0 is gone; start the run again"):
        other.hold()
    other.rest()
    other.hold()


def test_a_compilation_of_minutes_is_no_ones_end(clock: list[float]) -> None:
    pair = dogs(2)
    for dog in pair:
        dog.at("step 1")
    for _ in range(int(STUCK / LOST) - 1):
        clock[0] += LOST
        for dog in pair:
            dog.beat()


def test_one_stuck_in_its_data_is_named_and_not_those_that_wait(clock: list[float]) -> None:
    first, stuck = dogs(2)
    for dog in (first, stuck):
        dog.at("the data of step 3")
    first.at("step 3")
    with pytest.raises(Left, match="process 1 is stuck in the data of step 3 and the others wait"):
        for _ in range(int(STUCK / LOST) + 2):
            stuck.beat()
            first.beat()
            clock[0] += LOST


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_ends_the_others_with_its_own_code_and_line(
    failing: int, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exits(code: int) -> None:
        raise Left(str(code))

    monkeypatch.setattr(watchdog.os, "_exit", exits)
    pair = dogs(2)
    pair[0].board.put("left/1", "")
    with pytest.raises(Left, match="^1$"):
        pair[failing].fail(1, "the loss is nan")
    with pytest.raises(Left, match=f"^1 process {failing} failed: the loss is nan"):
        pair[1 - failing].beat()
