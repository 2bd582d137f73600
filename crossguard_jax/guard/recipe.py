"""CrossGuard: LoRA on both towers of a LLaVA, cross-entropy on the label that comes next.

``L = -E log p(y | picture, text)``, y a token of the whole vocabulary, over a weighted mixture of
implicit, explicit and benign rows (arXiv 2510.17687). The base is frozen: gradients and optimizer
state exist for the adapter alone.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crossguard_jax.core import metrics
from crossguard_jax.core.config import check_positive
from crossguard_jax.core.errors import UserError, check_divides
from crossguard_jax.core.sharding import (
    DEFAULT_RULES,
    Rules,
    batch_sharding,
    even_parts,
    make_mesh,
)
from crossguard_jax.data import pipeline
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import Record, blanked
from crossguard_jax.guard.augment import TALK, MixturePart, longest_row, parts
from crossguard_jax.guard.batches import microbatches
from crossguard_jax.guard.guard import Guard, is_plain
from crossguard_jax.guard.loss import guard_loss, mass_weight
from crossguard_jax.guard.mixture import (
    Readers,
    answered,
    contents_hash,
    fitting,
    listed_rows,
    open_sources,
)
from crossguard_jax.guard.settings import Settings
from crossguard_jax.hf.load import encoding_hash, folder_hash, resolve_folder
from crossguard_jax.hf.towers import tower_hash
from crossguard_jax.io.ahead import THREADS
from crossguard_jax.nn import lora
from crossguard_jax.runtime import preemption
from crossguard_jax.runtime.placement import WHOLE, Share
from crossguard_jax.train.checkpoint import Checkpoints
from crossguard_jax.train.identity import deciding
from crossguard_jax.train.loop import Hook, Schedule, train
from crossguard_jax.train.optim import optimizer
from crossguard_jax.train.step import TrainState, init_state, make_step


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        guard: the base with the adapter that was kept.
        step: the step the adapter is of (the best one, where the config keeps the best).
        rows: records of each source.
    """

    guard: Guard
    step: int
    rows: dict[str, int]


def train_guard(
    config: Any,
    folder: str | Path,
    readers: Readers | None = None,
    data: str | Path | None = None,
) -> Trained:
    """Trains an adapter as a configuration of ``configs/guard.py`` says, or goes on with it.

    Args:
        config: the configuration.
        folder: the run's; killed and started again, the run goes on where it was.
        readers: data readers beside `data.sources`' own, by the name a config may use.
        data: where datasets are written once and found again, for runs that share them;
            ``folder/data`` by default.

    Raises:
        UserError: see `Guard.from_pretrained`, `guard.mixture` and `train.loop`; or a number of the
            configuration that has to be above 0 is not.
    """
    check_positive(config, *(f"train.{name}" for name in ("steps", "batch_size", "save_every")))
    check_positive(config, "lora.rank", "optim.accumulate", "data.max_length")
    labels_first = float(config.train.labels_first)
    if not 0 <= labels_first <= 1:
        raise UserError(f"train.labels_first {labels_first:g}: a share of steps, 0 to 1")
    folder = Path(folder)
    mesh = make_mesh(**config.mesh)
    rules: Rules = {**DEFAULT_RULES, **config.axis_rules}
    rows_a_step, most = config.train.batch_size, config.optim.accumulate
    check_divides("optim.accumulate", most, "train.batch_size", rows_a_step)
    accumulate = even_parts("train.batch_size", rows_a_step, most, mesh, rules)
    folder.mkdir(parents=True, exist_ok=True)  # before minutes of loading
    guard = load_base(config, mesh, rules)
    key = jax.random.key(config.train.seed)
    model = lora.attach(guard.model, **config.lora, key=key)
    graphdef, adapters, frozen = lora.split(model)
    data = Path(data or folder / "data")
    words = guard.settings.prompt
    answers = (words.negative, words.positive)
    readers, seed = readers or {}, config.train.seed
    opened = answered(open_sources(config.data.sources, data, readers, seed), answers)
    held = open_sources(config.data.validation, data / "validation", readers, seed)
    held = answered(held, answers)
    fits = functools.partial(guard.encoder.fits, length=config.data.max_length)
    opened, held = (fitting(some, words.negative, fits) for some in (opened, held))
    mixed = parts(config.data, opened, guard.encoder, data, readers, seed)
    if config.train.keep_best:
        _check_both_labels(held)
    sharding = batch_sharding(mesh, rules, config.train.batch_size)
    adam = optimizer(config.optim, config.train.steps)
    blank = config.data.blank

    def shown(records: list[Record]) -> list[Record]:
        return [blanked(record, blank) for record in records]

    def encode(
        length: int, records: list[Record], share: Share = WHOLE, buckets: bool = False
    ) -> pipeline.Batch:
        return guard.encoder.training_batch(shown(records), length, share, buckets)

    def alike(length: int, records: list[Record]) -> Sequence[Any]:
        return guard.encoder.alike(shown(records), length)

    transform = functools.partial(encode, config.data.max_length)
    buckets = config.data.buckets
    own = functools.partial(encode, share=Share.under(sharding), buckets=buckets)
    validate = _Validation(guard, (graphdef, frozen), held, config.train.batch_size, transform)
    hooks = [Hook(config.train.eval_every, validate, config.train.keep_best)] if held else []
    rows = {name: len(source) for name, source in opened.items()}
    state = train(
        init_state(adapters, adam, config.train.seed, mesh, rules),
        make_step(
            guard_loss(graphdef, guard.label_ids, config.train.loss),
            adam,
            accumulate,
            microbatches,
            functools.partial(mass_weight, labels_first * config.train.steps),
            rules,
        ),
        frozen,
        batches(mixed, config.train.batch_size, seed, own, alike if buckets else None),
        Schedule(config.train.steps, config.train.save_every),
        folder,
        identity=run_identity(config, guard.folder, opened, data),
        batch_sharding=sharding,
        hooks=hooks,
        name=f"training {folder.name}",
        config=config,
    )
    step, kept = _kept(folder, state, bool(hooks and config.train.keep_best))
    settings = trained_settings(config, guard)
    model = lora.merge(graphdef, kept, frozen)
    trained = Guard(model, guard.folder, settings, mesh, rules, listed_rows(opened))
    return Trained(trained, step, rows)


def _check_both_labels(held: Mapping[str, RecordSource]) -> None:
    """Refuses to select by held-out rows of one label: best would be what says it of every row."""
    labels = {source[i].label for source in held.values() for i in range(len(source))}
    if len(labels) == 1:
        raise UserError(
            f"data.validation: every row is {labels.pop()!r}, so train.keep_best would keep the "
            "step that says so of all; add rows of the other label, or keep the last step: "
            "--config.train.keep_best="
        )


def load_base(config: Any, mesh: Any, rules: Rules) -> Guard:
    """The configuration's base model as a guard that has learned nothing yet; a plain LLaVA pads
    pictures from then on."""
    picture = config.data.picture or None
    if picture is None and is_plain(resolve_folder(config.model.path)):
        picture = "pad"
    return Guard.from_pretrained(
        config.model.path,
        dtype=config.model.dtype,
        mesh=mesh,
        prompt=config.data.prompt or None,
        picture=picture,
        rules=rules,
        vision_tower=config.model.vision_tower,
        remat=config.model.remat,
    )


def trained_settings(config: Any, guard: Guard) -> Settings:
    """The guard's settings, with the window that a configuration trains it for."""
    window = longest_row(config.data) - guard.encoder.tokens_per_image
    return replace(guard.settings, window=window)


def batches(
    mixed: Sequence[MixturePart],
    batch_size: int,
    seed: int,
    encode: Callable[[int, list[Record]], pipeline.Batch],
    alike: Callable[[int, list[Record]], Sequence[Any]] | None = None,
) -> pipeline.Interleaved:
    """A mixture's batches, each part's in one shape, or where rows are put with their like in few.

    Args:
        mixed: what `guard.augment.parts` gives.
        batch_size: rows of all processes.
        seed: of the order.
        encode: records to arrays, for rows of a length.
        alike: what they are put with their like by, for rows of a length; see `pipeline.mixture`.
    """
    streams = [
        pipeline.mixture(
            part.sources,
            part.weights,
            seed=seed,
            batch_size=batch_size,
            transform=functools.partial(encode, part.length),
            key=functools.partial(alike, part.length) if alike else None,
            prefetch=max(THREADS, 2),
            threads=THREADS,
        )
        for part in mixed
    ]
    return pipeline.Interleaved(streams, [part.share for part in mixed])


def run_identity(
    config: Any, base: Path, opened: Mapping[str, RecordSource], data: Path
) -> dict[str, Any]:
    """What must be the same for a checkpoint to be this run's; ``base`` is the model's folder, and
    ``data`` is where ``opened`` lie."""
    read = [*opened, *([TALK] if config.data.augment.long else [])]
    tower = config.model.vision_tower
    return {
        "base": folder_hash(base),
        "tower": tower_hash(tower) if tower else "",
        "encoding": encoding_hash(base),
        "rows": {name: len(source) for name, source in opened.items()},
        "contents": {name: contents_hash(data, name) for name in read},
        "config": deciding(config),
    }


def _kept(folder: Path, state: TrainState, keep_best: bool) -> tuple[int, Any]:
    if keep_best:
        checkpoints = Checkpoints(folder, {})
        best = checkpoints.restore_best(state.trainable)
        checkpoints.close()
        if best is not None:
            return best
    return int(state.step), state.trainable


class _Validation:
    """ASR, false positives, AUROC and loss over the held-out sources, at threshold 0.5."""

    def __init__(
        self,
        guard: Guard,
        parts: tuple[Any, Any],
        held: Mapping[str, RecordSource],
        batch_size: int,
        transform: pipeline.Transform,
    ):
        self._guard, (self._graphdef, self._frozen) = guard, parts
        self._held, self._batch_size, self._transform = held, batch_size, transform

    def __call__(self, state: TrainState) -> dict[str, float]:
        scores, labels = [], []
        for source in self._held.values():
            batches = pipeline.evaluation(
                source, batch_size=self._batch_size, transform=self._transform
            )
            for batch in batches:
                preemption.check()
                mask = batch.pop("mask")
                del batch["row"]
                truth = batch.pop("labels").astype(bool)
                p = self._guard.score_batch(batch, (self._graphdef, state.trainable, self._frozen))
                scores.append(p[mask])
                labels.append(truth[mask])
        p, unsafe = np.concatenate(scores), np.concatenate(labels)
        chosen = np.clip(np.where(unsafe, p, 1 - p), 1e-7, 1.0)
        values = {"loss": float(-np.log(chosen).mean())}
        for name, figure in (
            ("accuracy", metrics.accuracy(p, unsafe, 0.5)),
            ("asr", metrics.attack_success_rate(p, unsafe, 0.5)),
            ("fpr", metrics.false_positive_rate(p, unsafe, 0.5)),
            ("auroc", metrics.auroc(p, unsafe)),
        ):
            if figure.n and np.isfinite(figure.value):
                values[name] = float(figure.value)
        return values
