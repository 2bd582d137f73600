"""Progress lines."""

import io
import re
import sys
from contextlib import redirect_stderr

import pytest

from crossguard_jax.io.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def run(stream, clock, seconds: float, steps: int, **options) -> str:
    with redirect_stderr(stream), Progress("scoring", **options) as progress:
        for i in range(steps):
            clock.now += seconds / steps
            progress.update(note=f"loss {i}")
    return stream.getvalue()


def screen(written: str) -> list[str]:
    """What a terminal shows of it."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", written):
        if part == "\x1b[A":
            row -= 1
        elif part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_short_work_and_a_process_told_to_be_silent_print_nothing(clock, stream):
    assert run(stream(), clock, seconds=4.9, steps=100) == ""
    assert run(stream(), clock, seconds=1000, steps=1000, enabled=False) == ""


def test_a_terminal_sees_one_line_redrawn_with_rate_time_left_and_note(clock):
    written = run(Terminal(), clock, seconds=125, steps=1000, total=2000)
    assert written.count("\n") == 1 and written.count("\r") > 100
    line, after = screen(written)
    assert line.startswith("scoring:  50%|") and not after
    assert line.endswith("1000/2000 [02:05<02:05,  8.00row/s, loss 999]")


def test_a_log_file_sees_few_plain_lines(clock):
    written = run(io.StringIO(), clock, seconds=125, steps=1000, total=1000)
    lines = written.splitlines()
    assert len(lines) == 6  # after 5 s and then every 30, and the end
    assert lines[0].startswith("scoring:   4% 40/1000 [00:05<02:00,  8.00row/s, loss ")
    assert lines[1].startswith("scoring:  28% 280/1000 [00:35<01:30,  8.00row/s, loss ")
    assert lines[-1].startswith("scoring: 100% 1000/1000 [02:05<00:00,  8.00row/s")
    assert not set("\r\x1b") & set(written)


def test_resumed_work_counts_in_the_total_and_not_in_the_rate(clock):
    written = run(io.StringIO(), clock, seconds=100, steps=100, total=2000, start=1000)
    assert "scoring:  55% 1100/2000 [01:40<15:00,  1.00row/s" in written.splitlines()[-1]


def nested(stream, clock, message: str = "") -> str:
    with redirect_stderr(stream), Progress("training", 2, "step") as outer:
        for step in range(2):
            with Progress("scoring", 2) as inner:
                for _ in range(2):
                    clock.now += 40
                    inner.update()
                    if message:
                        Progress.write(f"{message} {step}", file=sys.stderr)
            outer.update()
    return stream.getvalue()


def test_nested_progress_and_what_is_written_meanwhile_garble_nothing(clock):
    *messages, last = filter(None, screen(nested(Terminal(), clock, "a message")))
    assert messages == ["a message 0"] * 2 + ["a message 1"] * 2
    assert last.startswith("training: 100%|")


def test_nested_progress_is_plain_lines_in_a_log(clock):
    lines = nested(io.StringIO(), clock).splitlines()
    assert all(re.match(r"(training|scoring): +\d+% [12]/2 \[", line) for line in lines)
    assert lines[-1].startswith("training: 100%")


def test_a_message_in_the_first_seconds_draws_nothing_else(clock):
    stream = Terminal()
    with redirect_stderr(stream), Progress("training", 2) as progress:
        progress.update()
        Progress.write("a message", file=stream)
    assert screen(stream.getvalue()) == ["a message", ""]
