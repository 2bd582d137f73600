"""Whoever works on which shard, the outputs are the same, and what is done is not done again."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.io import files
from crossguard_jax.runtime.executors.array import part_of
from crossguard_jax.runtime.executors.run import run_shards
from crossguard_jax.runtime.manifests import read_manifest
from crossguard_jax.runtime.shards import Shard, ShardJob
from tests.runtime.executors import fake_work

FACTORY = "tests.runtime.executors.fake_work:make"
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="no Ray: pip install -e '.[ray]'")
EXECUTORS = [None, "local", pytest.param("ray", marks=needs_ray)]
OTHERS = EXECUTORS[1:]
SHARDS = 7


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests, since it takes seconds."""
    if find_spec("ray") is None:
        yield
        return
    import ray

    quiet = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
    ray.init(num_cpus=2, **quiet)
    yield
    ray.shutdown()


@pytest.fixture
def shards(tmp_path) -> list[Shard]:
    for i in range(SHARDS):
        (tmp_path / f"{i}.txt").write_text(f"row {i}\nbad\n" if i % 3 == 0 else f"row {i}\n")
    return read_manifest(f"{tmp_path}/*.txt")


def job_in(folder: Path, **settings) -> ShardJob:
    spec = settings.pop("spec", {})
    return ShardJob(FACTORY, spec, str(folder), **settings)


def outputs(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.jsonl"))}


def done_by(folder: Path) -> list[list[str]]:
    """Worker, shard and threads of each time that a shard was worked on."""
    return [line.split(" ") for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize("on", EXECUTORS)
def test_executors_agree_and_a_second_run_does_nothing(tmp_path, shards, on) -> None:
    folder = tmp_path / "out"
    summary = run_shards(job_in(folder, threads=1), shards, on, workers=2)
    assert [report.shard for report in summary.reports] == shards
    assert summary.counts == {"rows": SHARDS + 3, "rejected": {"bad": 3}}
    for shard in shards:
        text = Path(shard.path).read_text().upper()
        assert outputs(folder)[f"{shard.name}.jsonl"] == text.encode()
    assert {threads for _, _, threads in done_by(folder)} == {"1"}
    again = run_shards(job_in(folder, threads=1), shards, on, workers=2)
    assert (again.before, again.counts) == (SHARDS, summary.counts)
    assert Counter(name for _, name, _ in done_by(folder)) == {s.name: 1 for s in shards}


@pytest.mark.parametrize("on", OTHERS)
def test_two_workers_work_at_the_same_time(tmp_path, on) -> None:
    """One waits for what the other one does."""
    for i, what in enumerate(("wait", "touch")):
        (tmp_path / f"{i}.txt").write_text(f"{what} {tmp_path}/met\n")
    shards = read_manifest(f"{tmp_path}/*.txt")
    assert not run_shards(job_in(tmp_path / "out"), shards, on, workers=2).failed


@pytest.mark.parametrize("what", ["kill", "stick", "raise"])
@pytest.mark.parametrize("on", EXECUTORS)
def test_a_worker_that_is_lost_costs_its_shard_another_try(tmp_path, shards, on, what) -> None:
    if on is None and what == "kill":
        pytest.skip("it would be this process")
    Path(shards[2].path).write_text(f"{what} {tmp_path}/met\nrow\n")
    job = job_in(tmp_path / "out", **{"deadline": 5.0} if what == "stick" else {})
    summary = run_shards(job, shards[:4], on, workers=1)
    assert summary.failed == []
    assert Counter(name for _, name, _ in done_by(tmp_path / "out")).most_common(1)[0][1] == 1
    assert not [*(tmp_path / "out").glob(".*")]


@pytest.mark.parametrize("on", OTHERS)
def test_a_shard_that_kills_its_workers_is_given_up_and_the_others_go_on(
    tmp_path, shards, on
) -> None:
    Path(shards[1].path).write_text("kill\n")
    (failed,) = run_shards(job_in(tmp_path / "out", attempts=2), shards[:3], on, workers=1).failed
    assert failed.shard == shards[1]
    assert failed.reason.startswith("given up after 2 workers: ")
    assert len(outputs(tmp_path / "out")) == 2


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_file_in_the_folders_place_is_seen_before_any_worker_starts(tmp_path, shards, on) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=f"^{tmp_path / 'out'}: no folder can be there"):
        run_shards(job_in(tmp_path / "out"), shards, on)


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_full_disk_ends_the_run_and_is_no_shards_fault(tmp_path, shards, on) -> None:
    folder = tmp_path / "out"
    Path(shards[1].path).write_text(f"full {tmp_path / 'once'}\n")
    with pytest.raises(UserError, match=f"^{folder}: No space left on device; make room and start"):
        run_shards(job_in(folder), shards, on, workers=1)
    assert [*outputs(folder)] == [f"{shards[0].name}.jsonl"]
    assert not run_shards(job_in(folder), shards, on, workers=1).failed
    assert len(outputs(folder)) == SHARDS


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_shard_that_cannot_be_read_is_told_with_its_reason(tmp_path, shards, on) -> None:
    Path(shards[1].path).unlink()
    summary = run_shards(job_in(tmp_path / "out"), shards[:3], on, workers=1)
    (failed,) = summary.failed
    assert failed.reason.endswith("cannot be read (no such file); correct the path")
    lines = [*summary.lines()]
    assert lines[0] == "3 shards: 2 done, 1 rejected"
    assert failed.reason in lines[1]
    Path(shards[1].path).write_text("row\n")  # once it is mended, it is done
    assert run_shards(job_in(tmp_path / "out"), shards[:3], on, workers=1).before == 2


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_job_that_cannot_be_done_ends_with_its_one_reason(tmp_path, shards, on) -> None:
    job = job_in(tmp_path / "out", spec={"refused": "there is no such model"})
    with pytest.raises(UserError, match="^there is no such model$"):
        run_shards(job, shards, on, workers=2)


@pytest.mark.parametrize("left", [SHARDS - 1, 0])
@pytest.mark.parametrize("on", EXECUTORS)
def test_outputs_of_another_job_are_refused(tmp_path, shards, on, left) -> None:
    run_shards(job_in(tmp_path / "out"), shards[: SHARDS - left], on, workers=1)
    job = job_in(tmp_path / "out", spec={"made of": "small letters"})
    with pytest.raises(UserError, match="made of: capitals, now small letters"):
        run_shards(job, shards, on, workers=1)


@pytest.fixture
def modelled(tmp_path, shards) -> Callable[..., int]:
    """``modelled()`` does the shards by a model, and says how often it was read."""
    (tmp_path / "model").write_text("one")

    def run(**settings: Any) -> int:
        before = len(fake_work.made)
        spec = {"model": str(tmp_path / "model")} | settings
        assert not run_shards(job_in(tmp_path / "out", spec=spec), shards).failed
        return len(fake_work.made) - before

    assert run() == 1
    return run


def test_where_all_is_done_a_model_is_read_only_if_something_has_changed(
    tmp_path, modelled, monkeypatch
) -> None:
    assert modelled() == 0
    assert (modelled(batch=8), modelled(batch=8)) == (1, 0)
    os.utime(tmp_path / "model", ns=(1, 1))
    assert (modelled(batch=8), modelled(batch=8)) == (1, 0)
    monkeypatch.setattr(files, "code", lambda: "a later version's")
    assert (modelled(batch=8), modelled(batch=8)) == (1, 0)
    run = tmp_path / "out/run.json"  # of a version that wrote down the identity alone
    run.write_text(
        json.dumps({k: v for k, v in json.loads(run.read_text()).items() if k != "made"})
    )
    assert (modelled(batch=8), modelled(batch=8)) == (1, 0)


def test_outputs_that_were_moved_are_compared_without_a_model_too(tmp_path, shards) -> None:
    (tmp_path / "model").write_text("one")
    read = []
    for place in ("here", "there"):
        before, out = len(fake_work.made), tmp_path / place / "out"
        spec = {"model": str(tmp_path / "model"), "queue": f"{out}.queue"}
        run_shards(job_in(out, spec=spec), shards)
        read.append(len(fake_work.made) - before)
        assert str(tmp_path / "here") not in (out / "run.json").read_text()
        if place == "here":
            (tmp_path / "here").rename(tmp_path / "there")
    assert read == [1, 0]


def test_where_all_is_done_a_model_that_was_trained_anew_is_another(tmp_path, modelled) -> None:
    (tmp_path / "model").write_text("two")
    for _ in range(2):
        with pytest.raises(UserError, match="model: one, now two.*give another folder"):
            modelled()


def slurm(index: int, count: int, first: int = 0, step: int = 1) -> dict[str, str]:
    return {
        "SLURM_ARRAY_TASK_ID": str(first + index * step),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_STEP": str(step),
        "SLURM_ARRAY_TASK_COUNT": str(count),
    }


def kubernetes(index: int, count: int) -> dict[str, str]:
    return {"JOB_COMPLETION_INDEX": str(index), "JOB_COMPLETIONS": str(count)}


@pytest.mark.parametrize(
    "environ",
    [slurm, kubernetes, lambda i, n: slurm(i, n, first=1), lambda i, n: slurm(i, n, 5, 2)],
)
def test_the_tasks_of_an_array_divide_the_shards(shards, environ) -> None:
    parts = [part_of(environ(i, 3), shards) for i in range(3)]
    assert [len(part) for part in parts] == [3, 2, 2]
    assert sorted(sum(parts, []), key=lambda s: s.number) == shards


@pytest.mark.parametrize(
    "environ",
    [
        {},
        kubernetes(3, 3),
        {"JOB_COMPLETION_INDEX": "0"},
        slurm(0, 2) | {"SLURM_ARRAY_TASK_ID": "x"},
    ],
)
def test_what_is_no_task_of_an_array_is_refused(shards, environ) -> None:
    with pytest.raises(UserError, match="--on array: "):
        part_of(environ, shards)


def test_the_tasks_of_an_array_leave_what_one_process_would(tmp_path, shards, monkeypatch) -> None:
    run_shards(job_in(tmp_path / "one"), shards)
    for i in range(3):
        for name, value in slurm(i, 3).items():
            monkeypatch.setenv(name, value)
        run_shards(job_in(tmp_path / "array"), shards, "array")
    assert outputs(tmp_path / "array") == outputs(tmp_path / "one")
    assert len(done_by(tmp_path / "array")) == SHARDS


@pytest.mark.parametrize("on", ["slurm", "ray:", "local:3", "array:2"])
def test_what_on_does_not_take_is_refused(tmp_path, shards, on) -> None:
    with pytest.raises(UserError, match="give one of local"):
        run_shards(job_in(tmp_path / "out"), shards, on)


def test_workers_end_when_whoever_started_them_is_killed(tmp_path, shards) -> None:
    """They would else keep their devices."""
    Path(shards[0].path).write_text("stick\n")
    code = f"""
        import os, signal
        from crossguard_jax.runtime.executors.local import _Child
        from crossguard_jax.runtime.shards import Shard, ShardJob
        child = _Child(ShardJob({FACTORY!r}, {{}}, {str(tmp_path / "out")!r}), {{}})
        child._send({{"number": 0, "path": {shards[0].path!r}, "rows": None}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    # The worker has our end of stderr, too: this returns once it is gone.
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == -signal.SIGKILL


@pytest.mark.parametrize("on", [None, "local"])
def test_processes_of_one_run_do_not_each_do_all_of_it(
    on: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="several processes of one run"):
        run_shards(job_in(tmp_path / "out"), [], on)
