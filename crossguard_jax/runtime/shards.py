"""Work that is cut into shards: what one is, where its output lies, and when it is done.

A manifest lists shards, each a file or some rows of one. A worker makes one output file of each
shard, which is renamed into its place when it is whole and on the disk; beside it, in ``reports``,
lies what was counted, or why there is no output. So a restart is a look at files: no row is ever
joined with another, and it does not matter who made what, or how often it was killed meanwhile.
Who works on which shard is for `executors` to say.
"""

import errno
import importlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.io import files, jsonl
from crossguard_jax.io.files import stamp

RUN, REPORTS = "run.json", "reports"
DEADLINE = 1800.0
ATTEMPTS = 3
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a disk on which nothing more can be written."""
DIGESTED = 2**28
"""Bytes of a file, at most, that is known by its content, too: it may come anew from a bucket."""

Counts = Mapping[str, Any]
"""Whole numbers by name, and such mappings inside; those of shards add up."""
Beat = Callable[[], None]
"""A worker calls it after each of its batches: it is alive, and its deadline starts anew."""


@dataclass(frozen=True)
class Shard:
    """A file, or some rows of it.

    Attributes:
        number: its place in the manifest, from 0.
        path: the file.
        rows: the first and the last row, counted from 1, as its reader does; None is all of them.
    """

    number: int
    path: str
    rows: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """What its output is called, without an ending; outputs sort as the manifest does."""
        rows = "" if self.rows is None else ".{}-{}".format(*self.rows)
        return f"{self.number:06d}-{Path(self.path).name.partition('.')[0]}{rows}"


Work = Callable[[Shard, Path, Beat], Counts]
"""Makes one shard's output at a path. Raises UserError where the shard cannot be read."""


@dataclass(frozen=True)
class ShardJob:
    """What is done with each shard, as plain values, so that other processes can be told of it.

    Attributes:
        factory: ``module:function``; the function takes `spec` and `folder` and gives a `Work`.
            What it raises as a UserError ends the job.
        spec: JSON values.
        folder: takes the outputs.
        ending: of their names.
        deadline: seconds that a worker has for a batch, or to start, before it is ended.
        attempts: how often a shard is begun whose worker dies or fails, before it is given up.
        threads: of XLA on each worker's CPU; None leaves them to XLA. Sums are cut by them, so the
            last bits of an output may depend on it.
    """

    factory: str
    spec: Mapping[str, Any]
    folder: str
    ending: str = ".jsonl"
    deadline: float = DEADLINE
    attempts: int = ATTEMPTS
    threads: int | None = None

    def output(self, shard: Shard) -> Path:
        """Where a shard's output lies, once it is whole."""
        return Path(self.folder) / f"{shard.name}{self.ending}"

    def report(self, shard: Shard) -> Path:
        """Where it is written down what became of a shard."""
        return Path(self.folder) / REPORTS / f"{shard.name}.json"

    def environ(self) -> dict[str, str]:
        """What has to be in a worker's environment before it imports JAX."""
        # The size of the thread pool of XLA's CPU client.
        return {} if self.threads is None else {"NPROC": str(self.threads)}


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard.

    Attributes:
        shard: which one.
        stamp: of its file when it was read; see `io.files.stamp`.
        bytes: of the output; -1 where there is none.
        counts: what the worker counted.
        reason: why there is no output, on one line.
        digest: of its file, if that is one and no more than `DIGESTED`.
    """

    shard: Shard
    stamp: str
    bytes: int
    counts: Counts
    reason: str = ""
    digest: str = ""


def finished(job: ShardJob, shard: Shard) -> ShardReport | None:
    """The report of a shard whose output is there and whole; None where it is to be made.

    It is to be made anew, too, where its file has changed since; not where that has moved, or has
    another time alone.
    """
    report = read_report(job.report(shard))
    if report is None or report.shard.name != shard.name or not _is_of(report, shard):
        return None
    try:
        whole = job.output(shard).stat().st_size == report.bytes
        return replace(report, shard=shard) if whole else None
    except OSError:
        return None


def _is_of(report: ShardReport, shard: Shard) -> bool:
    """Whether a shard's file is as it was when its report was written."""
    now = stamp(shard.path)
    same_size = report.stamp.split()[:1] == now.split()[:1]
    return report.stamp == now or bool(
        same_size and report.digest and report.digest == files.digest(shard.path)
    )


def read_report(path: Path) -> ShardReport | None:
    """What was written down of a shard; None where nothing was, or nothing that can be read."""
    try:
        value = json.loads(path.read_bytes())
        shard = value.pop("shard")
        rows = shard.pop("rows")
        return ShardReport(Shard(**shard, rows=rows and (rows[0], rows[1])), **value)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def refuse_others(job: ShardJob, shards: Sequence[Shard]) -> None:
    """Stops where a folder holds outputs that are of no shard of these: who reads all of the folder
    would read them, too.

    Raises:
        UserError: with the first one's name.
    """
    ours = {job.output(shard).name for shard in shards}
    folder = Path(job.folder)
    others = sorted(p.name for p in folder.glob(f"[!.]*{job.ending}") if p.name not in ours)
    if others:
        raise UserError(
            f"{folder}: {others[0]} is of no shard of this manifest ({len(others):,} such); "
            "remove what is old, or give another folder"
        )


def claim(folder: str | Path, identity: Mapping[str, Any], **notes: Any) -> None:
    """Writes down what outputs are made from; for factories, which know it.

    Args:
        folder: of the outputs.
        identity: all of it must be the same for a run to go on.
        notes: what else whoever reads the outputs wants to know.

    Raises:
        UserError: those in the folder are made from something else.
    """
    path = Path(folder) / RUN
    if path.exists():
        before, now = read_claim(folder)[0], json.loads(json.dumps(identity))
        changed = [name for name in {**now, **before} if before.get(name) != now.get(name)]
        if changed:
            what = "; ".join(
                f"{name}: {short(before.get(name), 60)}, now {short(now.get(name), 60)}"
                for name in changed
            )
            raise UserError(f"{path.parent}: outputs of another run ({what}); give another folder")
        return
    _write_run(path, {"identity": identity, "notes": notes})


def _write_run(path: Path, content: Mapping[str, Any]) -> None:
    jsonl.write_atomic(path, json.dumps(content, indent=2) + "\n")


def read_claim(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The identity and the notes that `claim` wrote down.

    Raises:
        UserError: there is nothing of it.
    """
    content = _read_run(Path(folder) / RUN)
    return content["identity"], content["notes"]


def _read_run(path: Path) -> dict[str, Any]:
    content = jsonl.read_json(path)
    if not isinstance(content, dict) or not {"identity", "notes"} <= content.keys():
        raise UserError(f"{path}: says not what the outputs are made from; give another folder")
    return content


def make_work(job: ShardJob) -> Work:
    """What a worker holds: it is made once, and has the model. Beside what the factory claims is
    written down what it was told and which files it noted, for `check_made`.

    Raises:
        UserError: no shard could be done.
    """
    module, _, name = job.factory.partition(":")
    with files.noting() as stamps:
        work = getattr(importlib.import_module(module), name)(job.spec, job.folder)
    path = Path(job.folder) / RUN
    if path.exists():
        others = {p: s for p, s in stamps.items() if not Path(p).is_relative_to(path.parent)}
        content, made = _read_run(path), {**_terms(job), "files": others}
        if content.get("made") != made:
            _write_run(path, content | {"made": made})
    return work


def check_made(job: ShardJob) -> None:
    """Sees that outputs which are all there are this job's, though nobody has to work.

    A factory that was told the same, and whose files and code are as they were, would claim the
    same. Any other is called, and compares: that is when a model is loaded that nobody uses.

    Raises:
        UserError: they are made from something else, or the factory says so.
    """
    path = Path(job.folder) / RUN
    if not path.exists():  # a factory that claims nothing
        return
    made = _read_run(path).get("made")
    stamps = made.pop("files", {}) if isinstance(made, dict) else {}
    if made != _terms(job) or not any(stamps.values()) or not files.unchanged(stamps):
        make_work(job)


def _terms(job: ShardJob) -> dict[str, Any]:
    """What a factory is told, as JSON has it, and by which code it is read; but for where the
    outputs are, which is elsewhere each time that they come from a bucket."""
    spec = json.loads(json.dumps(job.spec))
    for name, value in spec.items():
        spec[name] = value.removeprefix(job.folder) if isinstance(value, str) else value
    return {"factory": job.factory, "spec": spec, "code": files.code()}


def do_shard(job: ShardJob, work: Work, shard: Shard, beat: Beat = lambda: None) -> ShardReport:
    """Makes a shard's output and puts it into its place, or writes down why there is none.

    Raises:
        UserError: the folder takes nothing more, from whomever: no shard can be done.
        Exception: what is no fault of the shard's, as far as anyone knows; it may be tried again.
    """
    try:
        return _do_shard(job, work, shard, beat)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{job.folder}: {os.strerror(error.errno)}; make room and start again, what is done "
            "stays done"
        ) from error


def _do_shard(job: ShardJob, work: Work, shard: Shard, beat: Beat) -> ShardReport:
    output = job.output(shard)
    output.parent.mkdir(parents=True, exist_ok=True)
    before = stamp(shard.path)
    small = shard.rows is None and 0 < int((before or "0").split()[0]) <= DIGESTED
    digest = files.digest(shard.path) if small else ""
    # A name of its own: one that was taken for stuck may be at the same shard still.
    scratch = output.with_name(f".{output.name}.{uuid.uuid4().hex}.tmp")
    try:
        counts = work(shard, scratch, beat)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        report = ShardReport(shard, before, scratch.stat().st_size, counts, digest=digest)
        # First what is counted: an output is never without.
        _write_report(job, report)
        os.replace(scratch, output)
    except UserError as error:
        return give_up(job, shard, str(error))
    finally:
        scratch.unlink(missing_ok=True)
    return report


def give_up(job: ShardJob, shard: Shard, why: str) -> ShardReport:
    """Writes down why a shard has no output; the next run tries it again."""
    report = ShardReport(shard, stamp(shard.path), -1, {}, short(why, 400))
    _write_report(job, report)
    return report


def _write_report(job: ShardJob, report: ShardReport) -> None:
    jsonl.write_atomic(job.report(report.shard), json.dumps(asdict(report)) + "\n")


def sweep(job: ShardJob) -> None:
    """Removes what killed workers have left half written; nobody may be at work there."""
    for path in Path(job.folder).glob(f".*{job.ending}.*.tmp"):
        path.unlink(missing_ok=True)


def added(counts: Iterable[Counts]) -> dict[str, Any]:
    """The sums of counts, name by name."""
    total: dict[str, Any] = {}
    for each in counts:
        for name, value in each.items():
            if isinstance(value, Mapping):
                total[name] = added([total.get(name, {}), value])
            else:
                total[name] = total.get(name, 0) + value
    return total
