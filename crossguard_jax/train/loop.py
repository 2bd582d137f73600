"""The one training loop.

A recipe hands it a state, a step and batches. The loop logs, evaluates, saves, stops where it is
told to and on a loss that is no number, and finds its place again: killed at any moment and started
anew, a run ends with the arrays of an uninterrupted one, bit for bit.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import NamedSharding
from tensorboardX import SummaryWriter

from crossguard_jax.core import tree
from crossguard_jax.core.errors import UserError
from crossguard_jax.io import jsonl
from crossguard_jax.io.progress import Progress
from crossguard_jax.runtime import preemption, processes, remote, watchdog
from crossguard_jax.runtime.placement import Share, place
from crossguard_jax.runtime.preemption import Stopped
from crossguard_jax.train.checkpoint import Checkpoints
from crossguard_jax.train.step import Metrics, Step, TrainState
from crossguard_jax.train.telemetry import Profile, Telemetry, describe_run, note


@runtime_checkable
class BatchIterator(Protocol):
    """Endless batches of host arrays whose place can be kept and found again."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Hook:
    """Something to measure now and then: ``measure(state)`` every ``every`` steps and at the end.

    With ``keep_best``, the state is kept whenever that metric is at least as high as ever before
    (as low, if the name begins with ``-``): of equals, what learned longer. A ``measure`` that
    takes long calls `runtime.preemption.check` now and then: told to stop there, the run saves, and
    measures anew as it goes on.
    """

    every: int
    measure: Callable[[TrainState], Mapping[str, float]]
    keep_best: str = ""


@dataclass(frozen=True)
class Schedule:
    """How long a run is and how often it writes.

    Attributes:
        steps: optimizer steps in all.
        save_every: steps between checkpoints; the last step is always saved.
        log_every: steps between lines in ``metrics.jsonl`` and TensorBoard.
    """

    steps: int
    save_every: int
    log_every: int = 10


def train(
    state: TrainState,
    step: Step,
    frozen: Any,
    batches: BatchIterator,
    schedule: Schedule,
    folder: str | Path,
    *,
    identity: Mapping[str, Any],
    batch_sharding: NamedSharding | None = None,
    hooks: Sequence[Hook] = (),
    name: str = "training",
    config: Any = None,
) -> TrainState:
    """Runs to ``schedule.steps``, from the folder's latest checkpoint if there is one.

    Args:
        state: where a fresh run starts; it is donated.
        step: from `step.make_step`, or anything of its type.
        frozen: passed to every step as it is.
        batches: this process's rows of each batch (`runtime.placement.Share`).
        schedule: how long, how often.
        folder: takes checkpoints, ``metrics.jsonl``, ``telemetry.jsonl``, ``run.json`` and
            ``tensorboard/``.
        identity: what makes this run this run (configuration, base hash), as plain JSON values.
        batch_sharding: how the leading axis of a batch is spread; None puts it on one device.
        hooks: evaluations.
        name: for the progress line.
        config: the whole configuration, for ``run.json``.

    Returns:
        The state after the last step.

    Raises:
        UserError: a loss that is not finite (the batch is saved in the folder, and named), a
            checkpoint of another run, or one that cannot be written.
        Stopped: it was told to stop, and has saved.
    """
    folder = Path(folder)
    checkpoints = Checkpoints(folder, identity)
    state, best, unmeasured = _resumed(checkpoints, state, batches, len(hooks))
    first = int(state.step)
    last: _Done | None = None
    size = tree.count((state.trainable, frozen))
    share = Share.under(batch_sharding)
    telemetry = Telemetry(size, share.of / len(share.parts), jax.devices())
    with contextlib.ExitStack() as stack:
        stack.enter_context(preemption.saving())
        stack.callback(watchdog.at, "")
        stack.callback(checkpoints.close)
        describe_run(folder, identity, config, first)
        log = stack.enter_context(contextlib.closing(_Log(folder, first)))
        first_one = processes.is_first()
        progress = stack.enter_context(
            Progress(name, schedule.steps, unit="step", start=first, enabled=first_one)
        )
        profile = stack.enter_context(contextlib.closing(Profile(folder)))
        recorder = _Recorder(
            folder, schedule, hooks, batches, checkpoints, best, log, progress, telemetry
        )
        if unmeasured < len(hooks):
            recorder.measure(first, state, unmeasured)
        for n in range(first, schedule.steps):
            watchdog.at(f"the data of step {n + 1}")
            with telemetry.waiting():
                batch = next(batches)
            if n == first:
                preemption.check()  # before minutes of compilation, with nothing new to save
            watchdog.at(f"step {n + 1}")
            state, metrics = step(state, frozen, place(batch, batch_sharding))
            # The step before is looked at while this one computes.
            if last is not None:
                _check(last, folder)
                if not telemetry.started:
                    telemetry.start()
            last = (n + 1, batch, metrics)
            telemetry.step(batch)
            profile.step(metrics)
            recorder.record(last, state)
            progress.update()
    return state


_Done = tuple[int, Any, Metrics]  # steps done with it, its batch, its metrics


def _resumed(
    checkpoints: Checkpoints, state: TrainState, batches: BatchIterator, hooks: int
) -> tuple[TrainState, dict[str, float], int]:
    """Where the run goes on, its best metrics up to there, and how many hooks have measured there;
    sets the batches to their place."""
    restored = checkpoints.restore(state)
    if restored is None:
        return state, {}, hooks
    state, place, meta = restored
    batches.set_state(place)
    return state, dict(meta["best"]), meta.get("measured", hooks)


def _check(last: _Done, folder: Path) -> None:
    """Stops on a loss that is no number, and keeps the batch that made it."""
    n, batch, metrics = last
    loss = float(metrics["loss"])
    if not math.isfinite(loss):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"bad_batch_{n}.npz"
        arrays: dict[str, Any] = {k: np.asarray(v) for k, v in batch.items()}
        np.savez(file, **arrays)
        raise UserError(
            f"step {n}: the loss is {loss}; its batch is in {file}. Lower optim.learning_rate, "
            "set optim.clip_norm, or look at the batch; the last checkpoint is whole"
        )


@dataclass(frozen=True)
class _Recorder:
    """What a run writes between its steps: logs, evaluations, checkpoints."""

    folder: Path
    schedule: Schedule
    hooks: Sequence[Hook]
    batches: BatchIterator
    checkpoints: Checkpoints
    best: dict[str, float]
    log: "_Log"
    progress: Progress
    telemetry: Telemetry

    def record(self, last: _Done, state: TrainState) -> None:
        """Writes what is due after a step; waits for the device only where something is.

        Raises:
            Stopped: the run was told to stop, and is saved.
        """
        n, _, metrics = last
        ends = n == self.schedule.steps
        if n % self.schedule.log_every == 0 or ends:
            _check(last, self.folder)
            values = {k: float(v) for k, v in metrics.items()}
            figures = self.telemetry.figures(self.schedule.steps - n)
            self.log.write(n, values, figures)
            words = filter(None, [f"loss {values['loss']:.4f}", note(figures)])
            self.progress.update(0, note=", ".join(words))
        if any(self._due(hook, n) for hook in self.hooks):
            _check(last, self.folder)
            self.measure(n, state)
        if n % self.schedule.save_every == 0 or ends:
            _check(last, self.folder)
            self._save(n, state)
        try:
            preemption.check(n)
        except Stopped as stop:
            _check(last, self.folder)
            raise self._saved(stop, n, state) from None

    def measure(self, n: int, state: TrainState, first: int = 0) -> None:
        """Runs the hooks that are due after step ``n``, from the ``first`` on.

        Raises:
            Stopped: the run was told to stop, and is saved with what is still to be measured.
        """
        for i, hook in enumerate(self.hooks[first:], start=first):
            if not self._due(hook, n):
                continue
            watchdog.at(f"the evaluation after step {n}")
            try:
                self._measure(hook, state, n)
            except Stopped as stop:
                raise self._saved(stop, n, state, i) from None
            self.telemetry.pause()

    def _due(self, hook: Hook, n: int) -> bool:
        return bool(hook.every) and (n % hook.every == 0 or n == self.schedule.steps)

    def _save(self, n: int, state: TrainState, measured: int | None = None) -> None:
        watchdog.at(f"the save after step {n}")
        self.log.sync()  # no checkpoint is ahead of its log
        remote.copy()
        meta: dict[str, Any] = {"best": self.best}
        if measured is not None:
            meta["measured"] = measured
        self.checkpoints.save(n, state, self.batches.get_state(), meta)

    def _saved(
        self, stop: Stopped, n: int, state: TrainState, measured: int | None = None
    ) -> Stopped:
        """Saves, unless that step is saved; what to raise then."""
        self._save(n, state, measured)
        self.checkpoints.wait()
        return Stopped(f"{stop.reason}: saved after step {n} in {self.folder}")

    def _measure(self, hook: Hook, state: TrainState, n: int) -> None:
        values = dict(hook.measure(state))
        self.log.write(n, {f"eval/{k}": v for k, v in values.items()})
        if not hook.keep_best:
            return
        metric = hook.keep_best.lstrip("-")
        if metric not in values:
            raise UserError(f"keep_best {metric!r} is none of {', '.join(values)}")
        value = -values[metric] if hook.keep_best.startswith("-") else values[metric]
        if value >= self.best.get(hook.keep_best, -math.inf):
            self.best[hook.keep_best] = value
            self.checkpoints.save_best(n, state.trainable)


class _Log:
    """``metrics.jsonl`` and TensorBoard; what was written after the resumed step is dropped."""

    def __init__(self, folder: Path, first: int):
        self._writer: jsonl.JsonlWriter | None = None
        if not processes.is_first():
            return
        path = folder / "metrics.jsonl"
        if path.exists():
            kept = [v for _, v in _rows(path) if v["step"] <= first]
            jsonl.write_atomic(path, b"".join(jsonl.dumps(row) for row in kept))
        self._writer = jsonl.JsonlWriter(path)
        self._speed = jsonl.JsonlWriter(folder / "telemetry.jsonl")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def write(
        self, step: int, values: Mapping[str, float], figures: Mapping[str, float] | None = None
    ) -> None:
        """One line, and one point a value; ``figures``, the machine's, have their own file."""
        if self._writer is None:
            return
        self._writer.append({"step": step, **values})
        if figures:
            self._speed.append({"step": step, **figures})
            values = {**values, **{f"speed/{k}": v for k, v in figures.items()}}
        for key, value in values.items():
            self._board.add_scalar(key, value, step)

    def sync(self) -> None:
        """What was written is on disk after it."""
        if self._writer is not None:
            self._writer.sync()

    def close(self) -> None:
        """Writes no more."""
        if self._writer is not None:
            self._writer.close()
            self._speed.close()
            self._board.close()


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((n, v) for n, v in jsonl.read_jsonl(path) if isinstance(v, dict))


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``."""
    return [v for _, v in _rows(Path(folder) / "metrics.jsonl")]
