"""What a step of MBAT costs, in clean steps.

In theory: a clean step is a forward pass and its way back to the adapters, an inner step a forward
pass and its way back to the pixels; with a frozen base both are 4N a token, so they cost the same.
After ``k`` inner steps the clean rows and the adversarial ones are trained on, which is two clean
steps: ``k + 2`` in all, and ``k + 1`` only where inner steps are cheaper than clean ones.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from crossguard_jax.attacks.joint import Inputs
from crossguard_jax.attacks.logits import cross_entropy, margin_from
from crossguard_jax.bench.attacks_parts import EPSILON, compiled, normalized, picture
from crossguard_jax.bench.base import (
    ALPHA,
    LABELS,
    LEARNING_RATE,
    RANK,
    TARGETS,
    make_batch,
    reading,
    seeing,
)
from crossguard_jax.bench.results import (
    Comparison,
    compared,
    gflop_text,
    medians,
    seconds_text,
    table,
)
from crossguard_jax.cmai.arm import Controller, Knob
from crossguard_jax.cmai.consistency import ConsistencyConfig, make_check
from crossguard_jax.cmai.features import pooled
from crossguard_jax.cmai.immunize_step import CmaiState, make_immunize_step
from crossguard_jax.cmai.mbat import Answers, MbatSettings
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.timing import interleave, matmul_side
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.io.progress import rounds
from crossguard_jax.nn import lora
from crossguard_jax.nn.llava import Llava
from crossguard_jax.train.step import Metrics, Step, init_state, make_step

TEXT_WIDTH = 512  # of the texts' features, which the attack does not move
SAME = 1e-4  # relative; of losses and gradients


def step_costs(model: Llava, size: int, ks: Sequence[int], runs: int) -> dict[str, Any]:
    """Seconds of MBAT's step for each number of inner steps, over a clean step's.

    Args:
        model: the base; the adapter is the guard bench's.
        size: rows.
        ks: inner steps.
        runs: counted rounds.

    Raises:
        UserError: with a radius of zero, MBAT's step is not the clean one.
    """
    adapted = lora.attach(model, TARGETS, RANK, ALPHA, jax.random.key(0))
    graphdef, adapters, base = lora.split(adapted)
    check_graphdef, check = nnx.split(consistency_check(model), graph=False)
    frozen, batch = {"model": base, "check": check}, make_rows(model, make_batch(model, size))
    adam, width = optax.adamw(LEARNING_RATE), model.config.text.hidden_size
    start = init_state(adapters, adam, 0)
    beta, epsilon, share = (Knob(value, value) for value in (0.1, EPSILON, 0.5))
    controller = Controller(0.0, beta, epsilon, share)
    state = CmaiState(**vars(start), arm=controller.start())
    programs = steps((graphdef, check_graphdef), adam, width, controller, ks)
    sides: dict[str, Callable[[], Any]] = {}
    compile_seconds = {}
    for name, step in programs.items():
        first = start if name == "clean" else state
        program, compile_seconds[name] = compiled(step, first, frozen, batch)
        sides[name] = _repeatedly(program, first, frozen, batch)
        if name == "clean":
            clean = _stepped(program, start, frozen, batch)
        else:
            _check_same(_stepped(program, _without_radius(state), frozen, batch), clean, name)
    product, product_flops = matmul_side()
    timed = interleave({**sides, "matmul": product}, rounds(runs, "MBAT step"))
    rate = product_flops / timed["matmul"].median
    work = seeing(model, size) + reading(model, size, batch["input_ids"].shape[1])
    cost = {name: compared(timed, name, "clean") for name in sides if name != "clean"}
    slope, fixed_part = np.polyfit(ks, [cost[f"k{k}"]["median"] for k in ks], 1)
    return {
        "cost": cost,
        "in_theory": {f"k{k}": k + 2 for k in ks},
        "inner_step": float(slope),
        "the_rest": float(fixed_part),
        "seconds": medians(timed, "matmul"),
        "gflop": {"clean": work.gradient / 1e9}
        | {f"k{k}": (k + 2) * work.gradient / 1e9 for k in ks},
        "floor_seconds": {"clean": work.gradient / rate}
        | {f"k{k}": (k + 2) * work.gradient / rate for k in ks},
        "matmul_gflops": rate / 1e9,
        "compile_seconds": compile_seconds,
        "rows": size,
        "runs": runs,
    }


def shown(figures: dict[str, Any]) -> str:
    """The table: an immunized step beside a clean one; a ratio here is a cost."""
    seconds = figures["seconds"]
    rows = [
        Comparison(
            f"MBAT step, {name[1:]} inner steps",
            "a clean step",
            seconds["clean"],
            seconds[name],
            cost,
            figures["floor_seconds"][name],
            gflop_text(figures["gflop"][name]),
        )
        for name, cost in figures["cost"].items()
    ]
    clean = f"{seconds_text(figures['floor_seconds']['clean'])}, "
    clean += gflop_text(figures["gflop"]["clean"])
    return table(
        rows,
        "Here the ratio is this package's seconds over a clean step's, whose floor is "
        f"{clean}. An inner step costs {figures['inner_step']:.2f} clean steps and the rest "
        f"{figures['the_rest']:.2f}; by FLOPs, 1 and 2.",
    )


def steps(
    graphdefs: tuple[Any, Any],
    adam: optax.GradientTransformation,
    width: int,
    controller: Controller,
    ks: Sequence[int],
) -> dict[str, Step]:
    """The clean step, and MBAT's by its number of inner steps; ``graphdefs`` of model and check."""
    graphdef, check_graphdef = graphdefs

    def answer(
        trainable: Any, frozen: Any, batch: Any, inputs: Inputs, vocabulary: bool = False
    ) -> Answers:
        pixels, shift = inputs
        model = lora.merge(graphdef, trainable, frozen["model"])
        dtype = model.language_model.embed_tokens.embedding.dtype
        states = model.see(normalized(pixels).astype(dtype))
        x = model.place(batch["input_ids"], model.project(states)) + shift.astype(dtype)
        ids, labels = jnp.asarray(LABELS), batch["labels"]
        mask = batch["attention_mask"] > 0
        logits = model.read(x, mask, None if vocabulary else ids)
        s_c = nnx.merge(check_graphdef, frozen["check"])(pooled(states), batch["h_t"])
        loss = cross_entropy(logits, ids[labels] if vocabulary else labels)
        return Answers(loss, margin_from(logits[:, ids] if vocabulary else logits, labels), s_c)

    outer = functools.partial(answer, vocabulary=True)

    def clean_loss(
        trainable: Any, frozen: Any, batch: Any, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        still = jnp.zeros((*batch["text_mask"].shape, width), jnp.float32)
        answers = outer(trainable, frozen, batch, (batch["pixels"], still))
        return answers.loss.mean(), {}

    immunize = {
        f"k{k}": make_immunize_step(
            answer, MbatSettings(steps=k), controller, adam, width, outer=outer
        )
        for k in ks
    }
    return {"clean": make_step(clean_loss, adam)} | immunize


def consistency_check(model: Llava) -> Any:
    width = 2 * model.config.vision.hidden_size * len(model.config.vision_feature_layer)
    return make_check(ConsistencyConfig(width, TEXT_WIDTH), jax.random.key(1))


def make_rows(model: Llava, rows: dict[str, np.ndarray]) -> dict[str, Array]:
    """The guard bench's rows, as MBAT reads them."""
    ids, size = rows["input_ids"].astype(np.int32), len(rows["input_ids"])
    arrays = {
        "input_ids": ids,
        "attention_mask": rows["attention_mask"].astype(np.int32),
        "text_mask": ids != model.config.image_token_id,
        "pixels": picture(model, size),
        "has_picture": np.ones(size, bool),
        "labels": rows["labels"].astype(np.int32),
        "h_t": np.random.default_rng(2).normal(size=(size, TEXT_WIDTH)).astype(np.float32),
    }
    return {name: jnp.asarray(value) for name, value in arrays.items()}


def _repeatedly(program: Any, state: Any, frozen: Any, batch: Any) -> Callable[[], None]:
    """A step on from wherever the last one ended."""
    now = [_copy(state)]

    def run() -> None:
        now[0], metrics = program(now[0], frozen, batch)
        jax.block_until_ready((now[0], metrics))

    return run


def _stepped(program: Any, state: Any, frozen: Any, batch: Any) -> dict[str, float]:
    """Loss and gradient norm of a step."""
    _, metrics = program(_copy(state), frozen, batch)
    return {name: float(metrics[name]) for name in ("loss", "gradient_norm")}


def _copy(state: Any) -> Any:
    """Programs donate the state that they are given."""
    return jax.tree.map(jnp.copy, state)


def _without_radius(state: CmaiState) -> CmaiState:
    return replace(state, arm=replace(state.arm, epsilon=jnp.float32(0)))


def _check_same(metrics: dict[str, float], clean: dict[str, float], name: str) -> None:
    for metric, value in clean.items():
        if not np.isclose(metrics[metric], value, rtol=SAME):
            raise UserError(
                f"MBAT, {name}: with a radius of zero its {metric} is {metrics[metric]:.6g}, the "
                f"clean step's {value:.6g}"
            )
