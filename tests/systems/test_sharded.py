"""``score --shards``: one output a shard, the same whoever makes it."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import pytest

from crossguard_jax import cli
from crossguard_jax.systems import sharded

SHARDS, ROWS = 4, 6
BAD = {0: "not json", 2: '{"text": "  ", "image": null}'}


def write_shards(folder: Path, shards: int, rows: int, bad: dict[int, str]) -> Path:
    """A manifest of tables of ``rows`` each; some have a bad row in the middle."""
    folder.mkdir()
    for i in range(shards):
        lines = [
            json.dumps({"id": f"{i}-{r}", "text": f"{i} {r}{' can i' * (r % 3)}", "image": None})
            for r in range(rows)
        ]
        if i in bad:
            lines[rows // 2] = bad[i]
        (folder / f"part-{i}.jsonl").write_text("\n".join(lines) + "\n")
    manifest = folder / "manifest"
    manifest.write_text("".join(f"part-{i}.jsonl\n" for i in range(shards)))
    return manifest


@pytest.fixture
def manifest(tmp_path) -> Path:
    return write_shards(tmp_path / "in", SHARDS, ROWS, BAD)


@pytest.fixture
def score(llava_folder, capsys) -> Callable[..., tuple[int, str]]:
    """``score(*arguments)``: the verb on the random model; exit code and stdout."""

    def score(*arguments: object) -> tuple[int, str]:
        words = ["score", "--model", str(llava_folder), "--prompt", "short", *map(str, arguments)]
        return cli.main(words), capsys.readouterr().out

    return score


def outputs(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.jsonl"))}


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for data in outputs(folder).values() for line in data.splitlines()]


def test_each_row_of_each_shard_has_a_verdict_or_a_reason_in_order(
    tmp_path, manifest, score
) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    arguments = ("--shards", manifest, "--output", out, "--store", store)
    code, text = score(*arguments)
    assert code == 1
    rows = rows_of(out)
    assert [row["row"] for row in rows] == [*range(1, ROWS + 1)] * SHARDS
    assert ["reason" in row for row in rows].count(True) == len(BAD)
    assert [row["id"] for row in rows if "reason" not in row] == [
        f"{i}-{r}" for i in range(SHARDS) for r in range(ROWS) if i not in BAD or r != ROWS // 2
    ]
    assert "4 shards: 4 done, 0 rejected" in text
    assert "24 rows: 22 verdicts" in text and "1 rejected: not JSON" in text
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("*.jsonl")}
    code, text = score(*arguments)
    assert (code, "4 done, 4 of them before" in text) == (1, True)
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("*.jsonl")} == before
    # What is in the store is not made again, and another cut of the rows finds it there, too.
    _, text = score(
        "--input",
        tmp_path / "in/part-1.jsonl",
        "--output",
        tmp_path / "one.jsonl",
        "--store",
        store,
    )
    assert "6 of the verdicts had been made before" in text


def test_a_corrupt_shard_is_counted_with_its_reason_and_the_others_go_on(
    tmp_path, manifest, score
) -> None:
    (tmp_path / "in/part-1.jsonl").unlink()
    code, text = score("--shards", manifest, "--output", tmp_path / "out")
    assert code == 1
    assert "4 shards: 3 done, 1 rejected" in text and "part-1.jsonl: cannot be read" in text
    assert text.count("part-1.jsonl") == 1
    assert len(outputs(tmp_path / "out")) == 3


def test_rows_of_one_file_are_shards_too(tmp_path, manifest, score) -> None:
    part = tmp_path / "in/part-1.jsonl"
    halves = [{"path": part.name, "rows": rows} for rows in ([1, 3], [4, 6])]
    lines = [*halves, {"path": part.name, "rows": [70, 80]}]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, text = score("--shards", manifest, "--output", tmp_path / "out")
    assert [row["id"] for row in rows_of(tmp_path / "out")] == [f"1-{r}" for r in range(6)]
    assert code == 1 and "rows [70, 80]: the file ends at row 6" in text


def test_a_shard_does_not_depend_on_what_others_have_stored(
    tmp_path, manifest, score, monkeypatch
) -> None:
    """The rows of a window that is stored in part are scored together all the same."""
    monkeypatch.setattr(sharded, "WINDOW", 3)
    store = tmp_path / "store"
    one = tmp_path / "one.jsonl"
    one.write_text((tmp_path / "in/part-1.jsonl").read_text().splitlines()[1] + "\n")
    score("--input", one, "--output", tmp_path / "one.out.jsonl", "--store", store)
    score("--shards", manifest, "--output", tmp_path / "a", "--store", store)
    reports = [json.loads(p.read_text()) for p in sorted((tmp_path / "a/reports").iterdir())]
    assert [report["counts"]["computed"] for report in reports] == [5, 6, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--shards", "m", "--input", "i", "--output", "o"), "or --shards"),
        (("--shards", "m"), "need --output"),
        (("--shards", "m", "--output", "o", "--restart"), "--restart goes with --input"),
        (("--text", "a", "--on", "local"), "--on goes with --shards"),
        (("--shards", "m", "--output", "o", "--workers", "0"), "give more than 0"),
    ],
)
def test_flags_that_do_not_go_together_are_usage_errors(arguments, complaint, capsys) -> None:
    assert cli.main(["score", "--model", "none", *arguments]) == cli.USAGE
    assert complaint in capsys.readouterr().err


class Run:
    """The verb in a process of its own, its XLA on one thread; on one core if ``pinned``, since it
    reads rows and writes verdicts while XLA is at work."""

    def __init__(
        self,
        model: Path,
        manifest: Path,
        out: Path,
        *arguments: str,
        pinned: bool = False,
        **environ: str,
    ):
        words = ["score", "--model", model, "--prompt", "short", "--shards", manifest]
        words += ["--output", out, "--store", f"{out}.store", "--threads", "1", *arguments]
        self.out = out
        words = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] * pinned + [
            sys.executable,
            *("-m", "crossguard_jax"),
            *map(str, words),
        ]
        self.process = subprocess.Popen(
            words,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | environ,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # as workers have, by which Linux shares out cores
        )

    def end(self) -> tuple[int, str]:
        """Exit code and stdout."""
        text = self.process.communicate(timeout=600)[0]
        return self.process.returncode, text

    def workers(self) -> list[int]:
        """Its children's numbers."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]


@pytest.mark.devices
def test_forty_shards_are_the_same_bytes_by_every_executor_and_under_kills(
    tmp_path, llava_folder
) -> None:
    bad = {3: "no json", 11: "{}", 17: "no json", 29: '{"text": 1}', 38: "[]"}
    manifest = write_shards(tmp_path / "in", 40, ROWS, bad)

    def run(name: str, *arguments: str, **environ: str) -> dict[str, bytes]:
        code, text = Run(llava_folder, manifest, tmp_path / name, *arguments, **environ).end()
        assert code == (1 if "rejected: " in text else 0), text
        return outputs(tmp_path / name)

    one = run("process")
    assert len(one) == 40
    assert sum("reason" in row for row in rows_of(tmp_path / "process")) == len(bad)
    assert run("local", "--on", "local", "--workers", "2") == one
    with_ray = find_spec("ray") is not None
    print(f"by Ray: {'the same' if with_ray else 'not tried, it is not installed'}")
    assert not with_ray or run("ray", "--on", "ray", "--workers", "2") == one
    for task in range(3):
        slurm = {"SLURM_ARRAY_TASK_ID": f"{task}", "SLURM_ARRAY_TASK_COUNT": "3"}
        array = run("array", "--on", "array", **slurm)
    assert array == one

    killed = Run(llava_folder, manifest, tmp_path / "killed", "--on", "local", "--workers", "2")
    draw, kills, seen, before = random.Random(0), 0, {}, 0
    while killed.process.poll() is None:
        for path in killed.out.glob("*.jsonl"):
            seen.setdefault(path.name, path.stat().st_ino)
        workers = killed.workers()
        if kills < 5 and len(seen) > before and workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
            kills, before = kills + 1, len(seen)
    assert (killed.end()[0], kills) == (1, 5)
    assert outputs(killed.out) == one
    # What had been finished when a worker was killed is the very file still.
    assert {p.name: p.stat().st_ino for p in killed.out.glob("*.jsonl")}.items() >= seen.items()


def rate(outs: list[Path], skipped: int) -> float:
    """Shards a second by when outputs came, while all are at work: whoever works has started and
    compiled when the first ``skipped`` are there."""
    times = [sorted(path.stat().st_mtime for path in out.glob("*.jsonl")) for out in outs]
    begin = max(each[skipped // len(outs) - 1] for each in times)
    end = min(each[-1] for each in times)
    return sum(begin < time <= end for each in times for time in each) / (end - begin)


@pytest.mark.benches
def test_two_workers_on_a_core_each_do_nearly_twice_what_one_does_on_one(
    tmp_path, llava_folder
) -> None:
    """In turns, beside two processes that share nothing: what this machine's cores can do."""
    manifest = write_shards(tmp_path / "in", 160, 400, {})
    lines = manifest.read_text().splitlines(keepends=True)
    halves = [manifest.with_name(f"half-{i}") for i in range(2)]
    for i, half in enumerate(halves):
        half.write_text("".join(lines[i::2]))
    local = "--on", "local", "--workers"
    kinds = {
        "one worker": [(manifest, (*local, "1"))],
        "two": [(manifest, (*local, "2"))],
        "two processes": [(half, ()) for half in halves],
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(3):
        for kind, parts in kinds.items():
            outs = [tmp_path / f"{kind}-{turn}-{i}" for i in range(len(parts))]
            runs = [
                Run(llava_folder, m, out, *words, pinned=kind == "one worker")
                for (m, words), out in zip(parts, outs, strict=True)
            ]
            assert [run.end()[0] for run in runs] == [0] * len(runs)
            rates[kind].append(rate(outs, 60))
    one, two, apart = map(median, rates.values())
    print(
        f"shards a second: one worker {one:.2f}, two {two:.2f} ({two / one / 2:.0%} of twice), two "
        f"processes {apart:.2f} ({apart / one / 2:.0%}): two workers have {two / apart:.0%} of that"
    )
    assert two >= 0.9 * 2 * one
