"""CMAI on a LLaVA that answers from a closed list: the check, then MBAT under ARM's control.

The base (a guard, or any task model) is frozen. First the consistency check learns alone; what it
gives to held-out clean pairs says where the evasive adversary must stay and when ARM takes alarm.
Then the adapter learns from clean and adversarial rows while the check goes on learning. At the end
the thresholds of the inference policy are chosen on the held-out pairs again.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from crossguard_jax.cmai.answering import Checked
from crossguard_jax.cmai.arm import KNOBS, Controller
from crossguard_jax.cmai.consistency import pair_loss
from crossguard_jax.cmai.edits import edited_rows, read_edited
from crossguard_jax.cmai.immunize_step import CmaiState, make_immunize_step
from crossguard_jax.cmai.kinds import kind_of, start
from crossguard_jax.cmai.mbat import MbatSettings
from crossguard_jax.cmai.noise import with_noise
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.cmai.threshold import choose_threshold
from crossguard_jax.core.config import check_positive
from crossguard_jax.core.errors import UserError, check_divides
from crossguard_jax.core.sharding import (
    DEFAULT_RULES,
    Rules,
    batch_sharding,
    even_parts,
    make_mesh,
)
from crossguard_jax.core.tree import digest
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray
from crossguard_jax.data import pipeline
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import Record
from crossguard_jax.guard.augment import MixturePart, parts
from crossguard_jax.guard.mixture import Readers, open_sources
from crossguard_jax.guard.recipe import batches, run_identity
from crossguard_jax.nn import verdict
from crossguard_jax.nn.int8 import DTYPES
from crossguard_jax.runtime import processes
from crossguard_jax.runtime.placement import WHOLE, Share
from crossguard_jax.train.loop import Schedule, train
from crossguard_jax.train.optim import optimizer
from crossguard_jax.train.step import (
    Loss,
    Step,
    TrainState,
    init_state,
    joined,
    make_step,
    strided,
)

RECENT = 512
"""Clean scores that tau and tau_c follow: the lowest 1% of fewer would be a score or two."""

GOALS = ("answers", "features")
"""What MBAT's adversary and defence are about: the task's answers, or the tower's features."""


@dataclass(frozen=True)
class _Run:
    """What both stages share."""

    config: Any
    folder: Path
    task: Any  # of `kinds.KINDS`
    frozen: Any
    sources: Mapping[str, RecordSource]
    mixed: Sequence[MixturePart]
    held: Mapping[str, RecordSource]
    data: Path
    mesh: Any
    rules: Rules

    def batches(self, batch_size: int, share: Share = WHOLE) -> pipeline.Interleaved:
        """Training batches, or this process's rows of them."""
        encode = functools.partial(self.encode, share=share)
        alike = self._alike if self.config.data.buckets else None
        return batches(self.mixed, batch_size, self.config.train.seed, encode, alike)

    def _alike(self, length: int, records: list[Record]) -> Sequence[Any]:
        return self.task.alike(records, length)

    def train(self, state: TrainState, step: Step, frozen: Any, settings: Any, name: str) -> Any:
        """One stage in a folder of its own; returns what was trained."""
        sharding = batch_sharding(self.mesh, self.rules, settings.batch_size)
        return train(
            state,
            step,
            frozen,
            self.batches(settings.batch_size, Share.under(sharding)),
            Schedule(settings.steps, settings.save_every),
            self.folder / name,
            identity=self.identity(),
            batch_sharding=sharding,
            name=f"{name}, {self.folder.name}",
            config=self.config,
        ).trainable

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be this run's."""
        identity = run_identity(self.config, self.task.folder, self.sources, self.data)
        if (reader := self.task.reader) is not None and reader.state is not None:
            identity["text"] = digest(processes.gather(reader.state))
        return identity

    def encode(self, length: int, records: list[Record], share: Share = WHOLE) -> pipeline.Batch:
        """Records to the task's arrays, rows of ``length`` tokens."""
        mbat, buckets = self.config.mbat, self.config.data.buckets
        arrays = self.task.batch(records, length, share, buckets)
        if mbat.on and mbat.perturb == "edits":
            sizes = mbat.steps, mbat.edits
            seed = self.config.train.seed
            arrays |= edited_rows(self.task, records, length, *sizes, share, buckets, seed)
        return arrays


def immunize(
    config: Any,
    folder: str | Path,
    readers: Readers | None = None,
    data: str | Path | None = None,
) -> Any:
    """Immunizes a model as a configuration of ``configs/cmai.py`` says, or goes on with it.

    Args:
        config: the configuration.
        folder: the run's; killed and started again, the run goes on where it was.
        readers: data readers beside `data.sources`' own, by the name a config may use.
        data: where datasets are written once and found again; ``folder/data`` by default.

    Raises:
        UserError: see `Guard.from_pretrained`, `guard.mixture`, `train.loop`, and whatever is
            wrong with the configuration, by the field's name.
    """
    for stage in ("train", "cmcv.train"):
        check_positive(config, *(f"{stage}.{k}" for k in ("steps", "batch_size", "save_every")))
    check_positive(config, "cmcv.shared_width", "cmcv.hidden_width")
    if not 0.0 <= config.cmcv.noise < float("inf"):
        raise UserError(f"cmcv.noise {config.cmcv.noise!r}: 0 or a positive number")
    check_positive(config, "lora.rank", "data.max_length")
    check_positive(config, "optim.accumulate", "cmcv.optim.accumulate")
    if config.model.dtype in DTYPES:
        raise UserError(
            f"model.dtype {config.model.dtype!r}: what comes of this is merged weights, and none "
            "are rounded to 8 bits; give float32 or bfloat16"
        )
    for name, stage in _stages(config):
        rows, micro = stage.train.batch_size, stage.optim.accumulate
        check_divides(f"{name}optim.accumulate", micro, f"{name}train.batch_size", rows)
    for field, value, choices in (
        ("mbat.goal", config.mbat.goal, GOALS),
        ("train.loss", config.train.loss, verdict.LOSSES),
    ):
        if value not in choices:
            raise UserError(f"{field} {value!r} is none of {', '.join(choices)}")
    goal, perturb = config.mbat.goal, config.mbat.perturb
    if config.mbat.on and goal == "features" and perturb in ("text", "edits"):
        raise UserError(
            f"mbat.perturb {perturb!r}: no text moves the picture's features, which is "
            "what mbat.goal 'features' asks for; set it to 'picture'"
        )
    if config.mbat.on and goal == "features" and config.mbat.outer != "task":
        raise UserError(
            f"mbat.outer {config.mbat.outer!r}: mbat.goal 'features' gives no answers to keep to; "
            "set it to 'task'"
        )
    _check_branches(config)
    kind_of(config)
    folder = Path(folder)
    mesh = make_mesh(**config.mesh)
    rules: Rules = {**DEFAULT_RULES, **config.axis_rules}
    for name, stage in _stages(config):
        _parts_of(name, stage, mesh, rules)  # refused before anything is loaded
    folder.mkdir(parents=True, exist_ok=True)  # before minutes of loading
    data = Path(data or folder / "data")
    readers, seed = readers or {}, config.train.seed
    sources = open_sources(config.data.sources, data, readers, seed)
    held = open_sources(config.data.validation, data / "validation", readers, seed)
    task, trainable = start(config, sources, mesh, rules)
    opened, sources = sources, task.learnable(sources, config.data.max_length)
    task.note(sources, opened)
    mixed = parts(config.data, sources, task.encoder, data, readers, seed)
    held = task.learnable(held)
    run = _Run(config, folder, task, task.frozen_parts, sources, mixed, held, data, mesh, rules)
    tau, tau_c, recent = 0.0, 0.0, None
    if config.cmcv.on:
        trainable = _learn_to_check(run, trainable)
        clean = _clean_scores(run, trainable)
        tau = choose_threshold(clean, config.cmcv.pass_rate, config.cmcv.confidence).tau
        tau_c = float(np.quantile(clean, config.arm.alarm_rate))
        recent = _training_scores(run, trainable) if config.arm.follow else None
    if config.mbat.on:
        trainable = _learn_to_stand(run, trainable, tau, tau_c, recent)
    policy, threshold = Policy(), None
    if config.cmcv.on:
        scores = _clean_scores(run, trainable)
        threshold = choose_threshold(scores, config.cmcv.pass_rate, config.cmcv.confidence)
        policy = Policy.from_config({"branches": _cut(config, scores)})
    return kind_of(config).result(task, trainable, run.frozen, policy, threshold)


def check_loss(task: Checked, joint: bool, adversarial: bool = False, noise: float = 0.0) -> Loss:
    """The check's loss on a batch that `Task.read` has been through; see `Task.pairs` and
    `noise.with_noise`."""

    def loss(trainable: Any, frozen: Any, batch: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        batch = with_noise(batch, key, noise)
        pairs = task.pairs(trainable, frozen, batch, joint, adversarial)
        return pair_loss(task.check(trainable), pairs)

    return loss


def _learn_to_check(run: _Run, trainable: Any) -> Any:
    """The check alone: the model stays as it is."""
    config, task = run.config, run.task
    of_pairs = check_loss(task, joint=False)
    n_parts = _parts_of("cmcv.", config.cmcv, run.mesh, run.rules)

    def loss(check: Any, fixed: Any, batch: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        adapters, frozen = fixed
        everything = {"adapters": adapters, "check": check}
        batch = with_noise(batch, key, config.cmcv.noise)

        def seen(rows: Any) -> dict[str, Array]:
            h_v = task.see(everything, frozen, rows["pixels"])[1]
            return {"h_t": task.read(everything, frozen, rows)["h_t"], "h_v": h_v}

        # The model's part, a microbatch at a time; each text is then compared with all pictures.
        features = jax.lax.map(seen, strided(batch, n_parts))
        return of_pairs(everything, frozen, batch | joined(features), key)

    adam = optimizer(config.cmcv.optim, config.cmcv.train.steps, "cmcv.optim", "cmcv.train.steps")
    state = init_state(trainable["check"], adam, config.train.seed, run.mesh, run.rules)
    fixed, step = (trainable["adapters"], run.frozen), make_step(loss, adam, rules=run.rules)
    learned = run.train(state, step, fixed, config.cmcv.train, "check")
    return trainable | {"check": learned}


def _stages(config: Any) -> list[tuple[str, Any]]:
    """Sections with a training of their own, by how their fields' names begin."""
    return [("", config), ("cmcv.", config.cmcv)] if config.cmcv.on else [("", config)]


def _parts_of(name: str, stage: Any, mesh: Any, rules: Rules) -> int:
    """Microbatches of a stage where its batch is spread; see `even_parts`."""
    rows, most = stage.train.batch_size, stage.optim.accumulate
    return even_parts(f"{name}train.batch_size", rows, most, mesh, rules)


def controller_of(config: Any, tau_c: float) -> Controller:
    """ARM's, by the configuration's ``arm``."""
    knobs = {name: config.arm[name] for name in ("max_variance", *KNOBS)}
    return Controller.from_config(knobs | {"tau_c": tau_c})


def mbat_step(
    config: Any,
    task: Any,
    controller: Controller,
    adam: optax.GradientTransformation,
    accumulate: int,
    rules: Rules = DEFAULT_RULES,
) -> Step:
    """The step of MBAT that a configuration says, in so many microbatches, the check learning
    beside it."""
    mbat = dict(config.mbat)
    of_task, _ = mbat.pop("goal") == "answers", mbat.pop("on")
    beside = None
    if config.cmcv.on and config.cmcv.weight:
        # Pictures stay clean where only the text is attacked.
        adversarial = config.cmcv.adversarial and config.mbat.perturb in ("picture", "both")
        of_pairs = check_loss(task, config.cmcv.joint, adversarial, config.cmcv.noise)

        def beside(*args: Any) -> tuple[Array, Any]:
            value, metrics = of_pairs(*args)
            return config.cmcv.weight * value, metrics

    read = task.read
    if config.mbat.perturb == "edits":
        read = functools.partial(read_edited, task)
    learned = functools.partial(task.answers, vocabulary=config.train.loss == "vocabulary")
    return make_immunize_step(
        task.answers if of_task else task.deviations,
        MbatSettings(**mbat),
        controller,
        adam,
        task.width,
        read if of_task else task.add_clean_states,
        beside,
        learned if of_task else None,
        accumulate,
        rules,
    )


def _learn_to_stand(
    run: _Run,
    trainable: Any,
    tau: float,
    tau_c: float,
    recent: Float[np.ndarray, " N"] | None,
) -> Any:
    """MBAT, the check learning beside it.

    Args:
        run: what is trained on what.
        trainable: the adapter, and the check where there is one.
        tau: S_c that the evasive adversary stays above.
        tau_c: mean S_c of adversarial rows under which ARM takes alarm.
        recent: clean S_c of training rows, which both then follow; None: they stay.
    """
    config = run.config
    adam = optimizer(config.optim, config.train.steps)
    controller = controller_of(config, tau_c)
    accumulate = _parts_of("", config, run.mesh, run.rules)
    step = mbat_step(config, run.task, controller, adam, accumulate, run.rules)
    state = init_state(trainable, adam, config.train.seed, run.mesh, run.rules)
    # Where a step leaves it: elsewhere, the second step would compile anew.
    arm = jax.device_put(controller.start(tau, recent), NamedSharding(run.mesh, PartitionSpec()))
    whole = CmaiState(**vars(state), arm=arm)
    return run.train(whole, step, run.frozen, config.train, "mbat")


def _clean_scores(run: _Run, trainable: Any) -> Float[np.ndarray, " B"]:
    """S_c of the held-out pairs; rows without a picture have none."""
    size = run.config.cmcv.train.batch_size
    encode = functools.partial(run.encode, run.config.data.max_length)
    clean = (
        {name: value for name, value in batch.items() if name != "row"}
        for source in run.held.values()
        for batch in pipeline.evaluation(source, batch_size=size, transform=encode)
    )
    scores = _pair_scores(run, trainable, clean)
    if not scores.size:
        raise UserError("data.validation: the check needs held-out clean pairs; name a source")
    return scores


def _training_scores(run: _Run, trainable: Any) -> Float[np.ndarray, " B"] | None:
    """S_c of the first pairs that are trained on, `RECENT` of them, so that runs of one shape
    compile once; None where no row has a picture."""
    size = run.config.cmcv.train.batch_size
    with contextlib.closing(run.batches(size)) as drawn:
        first = itertools.islice(drawn, -(-RECENT // size))
        scores = _pair_scores(run, trainable, first)
    return np.resize(scores, RECENT) if scores.size else None


def _pair_scores(
    run: _Run, trainable: Any, batches: Iterable[pipeline.Batch]
) -> Float[np.ndarray, " B"]:
    """S_c of the batches' rows with a picture that their ``mask``, where they have one, has."""
    scores = [np.zeros(0, np.float32)]
    for batch in batches:
        mask = batch.pop("mask", True) & batch["has_picture"]
        s_c = processes.gather(_s_c(run.task, trainable, run.frozen, batch))
        scores.append(s_c[mask])
    return np.concatenate(scores)


@functools.partial(jax.jit, static_argnums=0)
def _s_c(task: Checked, trainable: Any, frozen: Any, batch: Any) -> Array:
    batch = task.read(trainable, frozen, batch)
    return task.s_c(trainable, batch, task.see(trainable, frozen, batch["pixels"])[1])


def _check_branches(config: Any) -> None:
    """Refuses before anything is trained what a policy would refuse at the end."""
    for branch in config.arm.branches:
        rate = branch.get("pass_rate", 0.5)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
            raise UserError(f"arm.branches: pass_rate {rate!r}: a share between 0 and 1")
    cut = _cut(config, np.linspace(0.0, 1.0, 100_000))
    # Where a branch is in full depends on the scores, which nobody has yet.
    Policy.from_config({"branches": [{k: b[k] for k in b if k != "full"} for b in cut]})


def _cut(config: Any, scores: Float[np.ndarray, " B"]) -> list[dict[str, Any]]:
    """The configuration's branches, each ``pass_rate`` turned into the score that it lies at."""
    cut = []
    for branch in config.arm.branches:
        options = dict(branch)
        if "pass_rate" in options:
            rate = options.pop("pass_rate")
            options["below"] = choose_threshold(scores, rate, config.cmcv.confidence).tau
        cut.append(options)
    return cut
