"""A folder in a bucket is one folder to whoever writes there, on whichever machine."""

import argparse
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from crossguard_jax import cli
from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime import flags, preemption, processes, remote
from crossguard_jax.runtime.executors.run import run_shards
from crossguard_jax.runtime.shards import Shard, ShardJob
from crossguard_jax.train.checkpoint import Checkpoints
from crossguard_jax.verbs import VERBS, Verb
from tests.train.stopped_run import Wait, run

BUCKET = "shelf://bucket/runs/guard"


class Shelf(MemoryFileSystem):
    """A bucket in memory, that notes what is done to it and can refuse."""

    protocol = "shelf"
    store: dict = {}
    pseudo_dirs = [""]
    done: list[tuple[str, str]] = []
    taken = threading.Event()
    refusing: Exception | None = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("shelf://", "memory://"))

    def put_file(self, lpath, rpath, **options):
        self._note("put", rpath)
        super().put_file(lpath, rpath, **options)
        self.taken.set()

    def get_file(self, rpath, lpath, **options):
        self._note("get", rpath)
        return super().get_file(rpath, lpath, **options)

    def pipe_file(self, path, value, **options):
        self._note("probe", path)
        return super().pipe_file(path, value, **options)

    def rm_file(self, path):
        self._note("rm", path)
        return self._rm(path)

    def _note(self, what, path):
        if self.refusing is not None:
            raise self.refusing
        self.done.append((what, path.removeprefix("/bucket/runs/guard/")))


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    """An empty bucket, and this machine's scratch folders apart."""
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    fresh = {"store": {}, "pseudo_dirs": [""], "done": [], "refusing": None}
    for name, value in (fresh | {"taken": threading.Event()}).items():
        monkeypatch.setattr(Shelf, name, value)
    monkeypatch.setattr(remote.tempfile, "tempdir", str(tmp_path))
    return Shelf


def names(shelf) -> set[str]:
    return {path.removeprefix("/bucket/runs/guard/") for path in shelf.store}


def write(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def work(out: str = BUCKET, **others: str):
    """What a verb gets whose ``--out`` is in the bucket."""
    args = argparse.Namespace(out=out, **others)
    return args, remote.staged(args, flags.remote_folders(args))


def test_what_is_written_is_in_the_bucket_and_what_is_there_is_here(shelf, tmp_path):
    args, staged = work()
    with staged:
        first = Path(args.out)
        write(first / "a.txt", "a")
        write(first / "sub" / "b.txt", "b")
        remote.copy()
        (first / "a.txt").unlink()
        write(first / "sub" / "b.txt", "bb")
    assert not any(tmp_path.iterdir()), "nothing is left here"
    args, staged = work()
    with staged:
        assert Path(args.out) != first and not (Path(args.out) / "a.txt").exists()
        assert (Path(args.out) / "sub" / "b.txt").read_text() == "bb"
    puts = [path for what, path in shelf.done if what == "put"]
    assert puts == ["a.txt", "sub/b.txt", "sub/b.txt"], "only what has changed is copied"
    assert names(shelf) == {"sub/b.txt"}


def test_scratch_files_stay_here_and_what_closes_a_folder_comes_last(shelf):
    args, staged = work()
    step = "latest/4/_CHECKPOINT_METADATA"
    with staged:
        for name in (step, "latest/4/state/d", ".x.tmp", "latest/8.orbax-checkpoint-tmp/d", "z"):
            write(Path(args.out) / name)
        remote.copy()
        assert [path for what, path in shelf.done if what == "put"][-1] == step
        assert names(shelf) == {step, "latest/4/state/d", "z"}
        for name in (step, "latest/4/state/d", "z"):
            (Path(args.out) / name).unlink()
    assert [path for what, path in shelf.done if what == "rm"][:2] == [".crossguard", step]


def test_a_file_that_is_removed_as_it_is_copied_is_no_failure(shelf, monkeypatch):
    args, staged = work()
    with staged:
        write(Path(args.out) / "old")
        write(Path(args.out) / "new")
        put = Shelf.put_file

        def put_file(self, lpath, rpath, **options):
            (Path(args.out) / "old").unlink(missing_ok=True)
            return put(self, lpath, rpath, **options)

        monkeypatch.setattr(Shelf, "put_file", put_file)
    assert names(shelf) == {"new"}


@pytest.mark.parametrize("emptied", [True, False])
@pytest.mark.parametrize("removed", ["the folder", "what is old"])
def test_what_a_cleaner_removes_here_stays_in_the_bucket(shelf, tmp_path, removed, emptied):
    args, staged = work()
    with pytest.raises(UserError, match=f"^{BUCKET}: its copy .*; set TMPDIR to a folder"), staged:
        write(Path(args.out) / "report.json", "r")
        write(Path(args.out) / "sub" / "b.txt", "b")
        remote.copy()
        if removed == "the folder":
            shutil.rmtree(tmp_path if emptied else args.out, ignore_errors=True)
            tmp_path.mkdir(exist_ok=True)
        else:
            for path in tmp_path.rglob("*"):
                if path.is_file() and (emptied or path.name != "b.txt"):
                    path.unlink()
            write(Path(args.out) / "late.txt", "l")
    late = {"late.txt"} if removed == "what is old" else set()
    assert names(shelf) == {"report.json", "sub/b.txt"} | late


def test_what_runs_for_long_is_copied_now_and_then_and_no_more_when_it_ends(shelf, monkeypatch):
    monkeypatch.setattr(remote, "PERIOD", 0.01)
    args, staged = work()
    with staged:
        write(Path(args.out) / "candidates.jsonl")
        assert shelf.taken.wait(60)
    # A copy of the folder as it is removed would remove the bucket's.
    assert not any(thread.name == "copy" for thread in threading.enumerate())
    assert names(shelf) == {"candidates.jsonl"}


def test_the_address_stands_wherever_the_folder_would(shelf, capsys):
    with pytest.raises(UserError, match=rf"^{BUCKET}/rows.jsonl: not to be read$"):
        args, staged = work()
        with staged:
            print(f"adapter: {args.out}/adapter")
            print("beside it", file=sys.stderr)
            raise UserError(f"{args.out}/rows.jsonl: not to be read")
    assert capsys.readouterr() == (f"adapter: {BUCKET}/adapter\n", "beside it\n")


def test_another_processes_error_names_the_bucket_too(shelf, monkeypatch):
    other = {"/another/machines/guard": BUCKET}
    monkeypatch.setattr(processes, "exchange", lambda names: [names, other])
    with pytest.raises(UserError, match=f"^process 0: {BUCKET}/a is gone$"), work()[1]:
        raise UserError("process 0: /another/machines/guard/a is gone")


def test_of_several_processes_the_first_writes_and_the_others_have_it(shelf, monkeypatch):
    args, staged = work()
    with staged:
        write(Path(args.out) / "data" / "rows")
        write(Path(args.out) / "run.json")
        remote.share(Path(args.out) / "data")
        assert names(shelf) == {"data/rows", "run.json"}
        other = remote.Mirror(Path(args.out).parent / "other", BUCKET)
        with monkeypatch.context() as another:
            another.setattr(processes, "is_first", lambda: False)
            another.setattr(processes, "by_first", lambda work: None)
            another.setattr(remote, "_mirrors", [other])
            write(other.folder / "mine")
            remote.share(other.folder / "data")
            remote.copy()
            assert names(shelf) == {"data/rows", "run.json"}
            assert (other.folder / "data" / "rows").exists()
            assert not (other.folder / "run.json").exists(), "no more than is shared"
            shelf.done.clear()
            remote.share(other.folder / "data")
            assert shelf.done == [], "what has not changed is not fetched anew"


def test_orbax_writes_to_gs_as_it_is_and_elsewhere_one_process_does(shelf, tmp_path, monkeypatch):
    assert str(remote.checkpoints(tmp_path / "a")) == str(tmp_path / "a")
    here = remote.Mirror(tmp_path / "x", BUCKET)
    assert here.straight(tmp_path / "x" / "mbat") is None
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(UserError, match=rf"{BUCKET}: several processes .*; mount the bucket"):
        here.straight(tmp_path / "x" / "mbat")
    here.address = "gs://bucket/runs/guard"
    assert here.straight(tmp_path / "x" / "mbat") == "gs://bucket/runs/guard/mbat"


NAMED = ("shards/best/0.jsonl", "data/latest/rows", "runs/a-0/train/latest/4/state/d")
"""What has a checkpoint's name, and was written here: a system's, a source's, a child's."""


@pytest.mark.parametrize("noted", [True, False])
def test_orbaxs_own_folders_alone_are_not_copied(shelf, tmp_path, monkeypatch, noted):
    """As if the bucket were Google's; it may be of a version that left no note there."""
    monkeypatch.setattr(remote, "STRAIGHT", "shelf://")
    straight = ("mbat/latest/4/_CHECKPOINT_METADATA", "mbat/latest/4/state/d", "mbat/latest/8/d")

    def begun(name: str) -> remote.Mirror:
        mirror = remote.Mirror(tmp_path / name / "run", BUCKET)
        mirror.begin()
        return mirror

    first = begun("first")
    if noted:
        first.straight(first.folder / "mbat")
    for name in straight:
        first._files.pipe_file(f"{first._root}/{name}", b"")
    for name in NAMED:
        write(first.folder / name)
    first.copy()
    note = {"mbat/.straight"} if noted else set()
    assert names(shelf) == {*straight, *NAMED} | note
    again = begun("again")
    files = [path for path in again.folder.rglob("*") if path.is_file()]
    here = {path.relative_to(again.folder).as_posix() for path in files}
    assert here == ({*NAMED} if noted else {*NAMED, *straight})
    assert again.straight(again.folder / "mbat") == f"{BUCKET}/mbat"
    write(again.folder / "mbat/best/1/d")
    shutil.rmtree(again.folder / "mbat")
    (again.folder / NAMED[0]).unlink()
    again.copy()
    assert names(shelf) == {*straight, *NAMED[1:], "mbat/.straight"}


def test_shards_that_a_run_has_written_are_done_when_they_come_from_the_bucket(shelf):
    before = []
    for _ in range(2):
        args, staged = work()
        with staged:
            cell = Path(args.out) / "cells" / "a.json"
            if not cell.exists():
                write(cell, "a cell\n")
            os.utime(cell, ns=(1, len(before)))
            job = ShardJob("tests.runtime.executors.fake_work:make", {}, f"{args.out}/figures")
            before.append(run_shards(job, [Shard(0, str(cell))]).before)
    assert before == [0, 1]


@pytest.mark.parametrize("phase, step, saved", [("step", 6, 6), ("save", 8, 8)])
def test_a_run_goes_on_from_the_bucket_where_nothing_of_it_is(
    phase, step, saved, shelf, tmp_path, monkeypatch
):
    class Stop(Wait):
        def __call__(self, phase, step):
            if (phase, step) == self.at:
                self.at = None
                listener.notice("told to stop by a test")

    run(tmp_path / "whole", Wait())
    listener = preemption.Listener()
    monkeypatch.setattr(preemption, "_current", listener)
    args, staged = work()
    with pytest.raises(preemption.Stopped) as stopped, staged:
        run(Path(args.out), Stop(phase, step))
    assert stopped.value.reason == f"told to stop by a test: saved after step {saved} in {BUCKET}"
    assert not Path(args.out).exists()
    monkeypatch.setattr(preemption, "_current", preemption.Listener())
    args, staged = work()
    with staged:
        assert Checkpoints(args.out, {})._latest.latest_step() == saved
        run(Path(args.out), Wait())
        for name in ("final.npy", "metrics.jsonl"):
            here, there = Path(args.out) / name, tmp_path / "whole" / name
            assert here.read_bytes() == there.read_bytes()
    assert {"final.npy", "metrics.jsonl", "run.json", "latest/12/_CHECKPOINT_METADATA"} <= names(
        shelf
    )


def test_a_killed_run_goes_on_from_what_the_bucket_had(shelf, tmp_path):
    left = {}

    class Kill(Wait):
        def __call__(self, phase, step):
            if (phase, step) == self.at:
                left.update(shelf.store)

    run(tmp_path / "whole", Wait())
    args, staged = work()
    with staged:
        run(Path(args.out), Kill("save", 8))
    shelf.store.clear()
    shelf.store.update(left)
    log = shelf.store["/bucket/runs/guard/metrics.jsonl"].getvalue().splitlines()
    assert json.loads(log[-1])["step"] == 8, "no checkpoint is ahead of its log"
    args, staged = work()
    with staged:
        run(Path(args.out), Wait())
    for name in ("final.npy", "metrics.jsonl"):
        assert (
            shelf.store[f"/bucket/runs/guard/{name}"].getvalue()
            == (tmp_path / "whole" / name).read_bytes()
        )


def test_a_failure_leaves_what_led_to_it_in_the_bucket(shelf):
    args, staged = work()
    with (
        pytest.raises(UserError, match=f"step 3: .* its batch is in {BUCKET}/bad_batch_3.npz"),
        staged,
    ):
        _bad_run(Path(args.out))
    assert "bad_batch_3.npz" in names(shelf)


def _bad_run(folder: Path) -> None:
    file = folder / "bad_batch_3.npz"
    folder.mkdir(parents=True)
    np.savez(file, x=np.zeros(3))
    raise UserError(f"step 3: the loss is nan; its batch is in {file}")


@pytest.mark.parametrize(
    "error, mend",
    [
        (FileNotFoundError("b/bucket/o"), "there is no such bucket; make it, or correct its name"),
        (PermissionError("AccessDenied"), "give this machine's account the right to list, write"),
        (OSError("Forbidden: no storage.objects.create"), "give this machine's account the right"),
        (RuntimeError("a server's error, 503"), "a server's error, 503"),
        (OSError(28, "No space left on device", "/x"), "set TMPDIR to a folder with room"),
    ],
)
def test_a_bucket_that_gives_nothing_is_one_line_before_anything_is_computed(
    error, mend, shelf, tmp_path
):
    shelf.refusing = error
    args, staged = work()
    with pytest.raises(UserError, match=f"^{BUCKET}: cannot be .*{mend}") as line, staged:
        pytest.fail("it began")
    assert "\n" not in str(line.value)


def test_what_a_bucket_does_not_take_at_the_end_is_left_here_and_named(shelf, tmp_path):
    args, staged = work()
    with (
        pytest.raises(UserError, match=f"{BUCKET}: .*; what it has not is left in {tmp_path}"),
        staged,
    ):
        write(Path(args.out) / "adapter")
        shelf.refusing = RuntimeError("a server's error, 503")
    (left,) = tmp_path.rglob("adapter")
    assert left == Path(args.out) / "adapter"


@pytest.mark.parametrize(
    "address, mend",
    [
        ("shelf://", "has no bucket; write shelf://BUCKET/"),
        ("nowhere://bucket/run", "for gs://, pip install gcsfs; for s3://, s3fs"),
    ],
)
def test_an_address_that_nothing_opens_is_one_line(address, mend, shelf):
    args, staged = work(address)
    with pytest.raises(UserError, match=f"^{address}: .*{mend}"), staged:
        pytest.fail("it began")


@pytest.mark.parametrize("flag", flags.FILES)
def test_a_file_that_is_appended_to_is_no_buckets(flag):
    with pytest.raises(UserError, match=rf"--{flag} gs://bucket/run: .*mount"):
        flags.remote_folders(argparse.Namespace(**{flag: "gs://bucket/run"}))
    assert flags.remote_folders(argparse.Namespace(**{flag: "runs/x"})) == {}


@pytest.mark.parametrize("flag", flags.FOLDERS)
def test_a_folder_may_be_unless_other_machines_write_there(flag):
    given = {flag: "gs://bucket/run"}
    assert flags.remote_folders(argparse.Namespace(**given, on="local")) == given
    with pytest.raises(UserError, match=rf"--{flag.replace('_', '-')} .* by --on ray:a .*mount"):
        flags.remote_folders(argparse.Namespace(**given, on="ray:a"))


def test_a_verb_is_given_a_folder_of_this_machines(shelf, monkeypatch, capsys):
    probe = Verb(
        help="writes",
        example="probe",
        handler="tests.runtime.test_remote:write_probe",
        add_arguments=lambda parser: parser.add_argument("--out"),
        uses_jax=False,
        uses_models=False,
    )
    monkeypatch.setitem(VERBS, "probe", probe)
    assert cli.main(["probe", "--out", BUCKET]) == 0
    assert capsys.readouterr().out == f"probe: {BUCKET}/probe.json\n"
    assert json.loads(shelf.store["/bucket/runs/guard/probe.json"].getvalue()) == {"probe": 1}


def test_programs_kept_where_nothing_opens_it_are_one_line_too(shelf, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "nowhere://bucket/cache")
    assert cli.main(["plan", "--topology", "v5e-8", "--table", "--out", "x"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("crossguard: JAX_COMPILATION_CACHE_DIR=nowhere://bucket/cache: cannot")
    assert error.count("\n") == 1 and "pip install gcsfs" in error


def write_probe(args: argparse.Namespace) -> None:
    file = Path(args.out) / "probe.json"
    write(file, '{"probe": 1}')
    print(f"probe: {file}")
