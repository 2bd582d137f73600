"""``crossguard bench cmai``: what each part of CMAI costs, in training and at inference.

On the small world's LLaVA, with the settings of ``configs/cmai.py``: a step of training with each
part over a step on clean rows alone, and what a request meets at inference over the answer alone.
Everything is compiled beforehand and then interleaved. Rows are noise and one question: what is in
them changes no cost.
"""

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from crossguard_jax.bench.results import (
    Measurements,
    compared,
    first_calls,
    medians,
    ratio_text,
    seconds_text,
)
from crossguard_jax.cmai import policy as policies
from crossguard_jax.cmai.immunize_step import CmaiState
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.kinds import start
from crossguard_jax.cmai.noise import row_keys
from crossguard_jax.cmai.policy import Branch
from crossguard_jax.cmai.recipe import (
    RECENT,
    check_loss,
    controller_of,
    mbat_step,
)
from crossguard_jax.cmai.task import Task
from crossguard_jax.core.config import load_config
from crossguard_jax.core.sharding import DEFAULT_RULES, make_mesh
from crossguard_jax.core.timing import interleave
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.data.records import Record
from crossguard_jax.io.images import encode_png
from crossguard_jax.io.progress import rounds
from crossguard_jax.train.optim import optimizer
from crossguard_jax.train.step import Metrics, init_state, make_step

MODEL, CONFIG = "toy://llava", "configs/cmai.py"
TEXT = "may i give the thing at the top left to my child?"

CLEAN, ANSWER = "clean", "answer"
"""What the others are measured over."""

TRAINING: Mapping[str, tuple[str, str]] = {
    CLEAN: ("a step on clean rows", "tiny"),
    "check": ("CMCV alone, the model held still", "tiny"),
    "mbat": ("MBAT", "mbat"),
    "cmcv_mbat": ("MBAT, CMCV beside it", "cmcv_mbat"),
    "arm": ("MBAT, CMCV beside it, ARM", "tiny"),
    "noise": ("the same, noise in CMCV's batches", "noisy_check"),
}
"""Steps of training: a title each, and a variant of the configuration."""

BRANCHES: Mapping[str, tuple[str, Branch]] = {
    ANSWER: ("the answer alone", Branch(2.0, "accept")),
    "accept": ("CMCV, and the answer", Branch(2.0, "accept")),
    "smooth": ("CMCV, and ARM's mean of 2 noisy copies", Branch(2.0, "smooth", n=2)),
    "robust": ("CMCV, and ARM's blend of the adapter", Branch(2.0, "robust")),
    "reject": ("CMCV, and no answer", Branch(2.0, "reject")),
}
"""What a request meets, by what ARM does with it."""


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the table, and writes ``bench_cmai.json``."""
    measurements = Measurements(
        Path(args.out) / "bench_cmai.json", args.threads, {"jax": jax.__version__}
    )
    records = make_records(args.batch)
    for name, measure, titles in (
        ("training", training_costs, {k: title for k, (title, _) in TRAINING.items()}),
        ("inference", inference_costs, {k: title for k, (title, _) in BRANCHES.items()}),
    ):
        figures = measure(records, args.runs)
        measurements.add(name, figures, shown(name, figures, titles))


def training_costs(records: Sequence[Record], runs: int) -> dict[str, Any]:
    """Seconds of each step over a clean one's.

    Args:
        records: a batch.
        runs: counted rounds.
    """
    sides = {name: step_of(records, name) for name in TRAINING}
    return _figures(sides, CLEAN, len(records), runs, "steps of training")


def inference_costs(records: Sequence[Record], runs: int) -> dict[str, Any]:
    """Seconds of what a request meets over the answer's alone; as of `training_costs`."""
    _, task, trainable = prepared("tiny")
    system = Immunized(task, trainable, task.frozen_parts)
    x, rows = system.rows(records)
    inputs = {name: jnp.asarray(value) for name, value in rows.items()} | {"pixels": x}
    keys = row_keys(jax.random.key(0), [record.id for record in records])
    s_c = jax.jit(system.s_c)
    answer = jax.jit(policies.answer, static_argnums=(0, 1))

    def run(branch: Branch, checked: bool) -> None:
        scores = jnp.zeros(len(records))
        if checked:
            scores = jax.block_until_ready(s_c(system.params, inputs, inputs["pixels"]))
        if branch.do != "reject":
            given = system.params, inputs, scores, keys
            jax.block_until_ready(answer(branch, system.predict, *given))

    sides = {
        name: functools.partial(run, branch, name != ANSWER)
        for name, (_, branch) in BRANCHES.items()
    }
    return _figures(sides, ANSWER, len(records), runs, "requests")


def _figures(
    sides: Mapping[str, Callable[[], None]], over: str, size: int, runs: int, what: str
) -> dict[str, Any]:
    timed = interleave(sides, rounds(runs, what))
    return {
        "cost": {name: compared(timed, name, over) for name in sides},
        "seconds": medians(timed),
        "first_call_seconds": first_calls(timed),
        "over": over,
        "rows": size,
        "runs": runs,
    }


def shown(name: str, figures: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The table of one of the two."""
    lines = [
        f"| {name} | a batch of {figures['rows']} | over {titles[figures['over']]} (low to high) |",
        "| --- | ---: | ---: |",
    ]
    for part, cost in figures["cost"].items():
        seconds = seconds_text(figures["seconds"][part])
        lines.append(f"| {titles[part]} | {seconds} | {ratio_text(cost)} |")
    return "\n".join(lines)


def make_records(n: int) -> list[Record]:
    """Rows with a picture of noise each."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (n, 64, 64, 3)).astype(np.uint8)
    labels = ("safe", "unsafe")
    return [
        Record(str(i), (encode_png(Image.fromarray(picture)),), TEXT, labels[i % 2])
        for i, picture in enumerate(levels)
    ]


def prepared(name: str) -> tuple[Any, Task, Any]:
    """A variant of the configuration, its task on the small world's LLaVA, and what is trained."""
    config = load_config(f"{CONFIG}:{name}", [f"--config.model.path={MODEL}"])
    task, trainable = start(config, {}, make_mesh(), DEFAULT_RULES)
    return config, task, trainable


def step_of(records: Sequence[Record], name: str) -> Callable[[], None]:
    """A key of `TRAINING` as a step on from wherever the last one ended."""
    config, task, trainable = prepared(TRAINING[name][1])
    batch = {k: jnp.asarray(v) for k, v in task.batch(records, config.data.max_length).items()}
    adam = optimizer(config.optim, config.train.steps)
    frozen: Any = task.frozen_parts
    if name == CLEAN:
        state = init_state({"adapters": trainable["adapters"]}, adam, 0)
        step = make_step(_clean_loss(task), adam)
    elif name == "check":
        state = init_state(trainable["check"], adam, 0)
        frozen = trainable["adapters"], frozen
        step = make_step(_check_loss(task), adam)
    else:
        controller = controller_of(config, 0.0)
        recent = np.zeros(RECENT, np.float32) if config.cmcv.on and config.arm.follow else None
        plain = init_state(trainable, adam, 0)
        state = CmaiState(**vars(plain), arm=controller.start(0.0, recent))
        step = mbat_step(config, task, controller, adam, config.optim.accumulate)
    now = [jax.tree.map(jnp.copy, state)]  # a step donates what it is given

    def run() -> None:
        now[0], metrics = step(now[0], frozen, batch)
        jax.block_until_ready((now[0], metrics))

    return run


def _clean_loss(task: Task) -> Callable[..., tuple[Array, Metrics]]:
    def loss(trainable: Any, frozen: Any, batch: Any, key: PRNGKeyArray) -> tuple[Array, Metrics]:
        still = jnp.zeros((1, 1, task.width), jnp.float32)
        logits, _ = task.logits(trainable, frozen, batch, (batch["pixels"], still), vocabulary=True)
        right = jnp.asarray(task.label_ids)[batch["labels"]]
        return optax.softmax_cross_entropy_with_integer_labels(logits, right).mean(), {}

    return loss


def _check_loss(task: Task) -> Callable[..., tuple[Array, Any]]:
    of_pairs = check_loss(task, joint=False)

    def loss(check: Any, fixed: Any, batch: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        adapters, frozen = fixed
        everything = {"adapters": adapters, "check": check}
        return of_pairs(everything, frozen, task.read(everything, frozen, batch), key)

    return loss
