"""Progress lines."""

import io

from crossguard_jax.io.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(stream, seconds: float, steps: int, **options) -> str:
    clock = Clock()
    with Progress("scoring", stream=stream, clock=clock, **options) as progress:
        for _ in range(steps):
            clock.now += seconds / steps
            progress.update()
    return stream.getvalue()


def test_short_work_prints_nothing():
    assert run(Terminal(), seconds=4.9, steps=100) == ""
    assert run(io.StringIO(), seconds=4.9, steps=100) == ""


def test_a_terminal_sees_one_line_redrawn_with_rate_and_time_left():
    printed = run(Terminal(), seconds=100, steps=1000, total=2000)
    assert printed.count("\n") == 1 and printed.endswith("\n")
    frames = printed.split("\r")
    assert len(frames) > 100
    assert "scoring: 1,000/2,000 (50%), 10.0 rows/s, 1m40s so far, 1m40s left" in frames[-1]


def test_a_log_file_sees_few_plain_lines():
    lines = run(io.StringIO(), seconds=100, steps=1000, total=1000).splitlines()
    assert 3 <= len(lines) <= 6
    assert not any("\r" in line for line in lines)
    assert lines[-1].startswith("scoring: 1,000/1,000 (100%)") and "left" not in lines[-1]


def test_resumed_work_counts_in_the_total_and_not_in_the_rate():
    lines = run(io.StringIO(), seconds=10, steps=100, total=2000, start=1000).splitlines()
    assert lines[-1].startswith("scoring: 1,100/2,000 (55%), 10.0 rows/s, 10s so far, 1m30s left")


def test_slow_work_is_told_in_seconds_each():
    assert "20.0 s/step" in run(io.StringIO(), seconds=100, steps=5, unit="step")


def test_a_shorter_line_leaves_nothing_of_a_longer_one_behind():
    stream, clock = Terminal(), Clock()
    progress = Progress("training", stream=stream, clock=clock, quiet_seconds=0.0)
    progress.update(note="loss 0.123456")
    clock.now = 1.0
    progress.update(note="ok")
    first, second = stream.getvalue().split("\r")[1:]
    assert second.rstrip().endswith("ok") and len(second) >= len(first)


def test_a_process_told_to_be_silent_prints_nothing():
    assert run(io.StringIO(), seconds=1000, steps=1000, enabled=False) == ""
