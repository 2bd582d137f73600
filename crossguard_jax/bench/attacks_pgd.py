"""PGD against torchattacks, on the same weights and the same pictures.

Both return the last iterate and judge nothing: of `pgd`'s result the pixels alone leave the
program, and what nobody reads is not computed. Parameters are frozen on both sides, pixels are in
[0, 1] and the normalization belongs to the model; torch computes the last position's logits only.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks import search
from crossguard_jax.attacks.logits import from_logits
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget, Objective
from crossguard_jax.bench.attacks_parts import (
    EPSILON,
    check_in_ball,
    check_same_pixels,
    compiled,
    normalized,
    picture,
    ready,
)
from crossguard_jax.bench.base import LABELS, make_batch, reading, seeing
from crossguard_jax.bench.results import Comparison, compared, gflop_text, medians, table
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.timing import interleave, matmul_side
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.hf.pictures import OPENAI_MEAN, OPENAI_STD
from crossguard_jax.io.progress import rounds
from crossguard_jax.nn import verdict
from crossguard_jax.nn.llava import Llava

STEPS = 10
RELATIVE_STEP = 0.25  # 2/255 of 8/255, torchattacks' default


def against_torchattacks(folder: Path, model: Llava, size: int, runs: int) -> dict[str, Any]:
    """Seconds of PGD-10 on both sides, without and with a random start, and of its parts.

    Args:
        folder: the model, as transformers reads it.
        model: the same, loaded here.
        size: rows.
        runs: counted rounds.

    Raises:
        UserError: the two sides do not find the same pixels.
    """
    batch = make_batch(model, size)
    x = picture(model, size)
    ours, compile_seconds = _our_sides(model, batch, x)
    sides: dict[str, Callable[[], Any]] = _torch_sides(folder, batch, x) | ours
    different = check_same_pixels(sides["jax"](), sides["torch"](), x, "PGD")
    for name in ("torch_random", "jax_random"):
        check_in_ball(sides[name](), x, f"PGD with a random start, {name}")
    product, product_flops = matmul_side()
    timed = interleave({**sides, "matmul": product}, rounds(runs, "PGD"))
    seconds, rate = medians(timed, "matmul"), product_flops / timed["matmul"].median
    work = seeing(model, size) + reading(model, size, batch["input_ids"].shape[1])
    gflop = STEPS * work.gradient / 1e9
    return {
        "ratio": compared(timed, "torch", "jax"),
        "ratio_random": compared(timed, "torch_random", "jax_random"),
        "seconds": seconds,
        "compile_seconds": compile_seconds,
        "different_pixels": different,
        "gflop": gflop,
        "matmul_gflops": rate / 1e9,
        "floor_seconds": gflop * 1e9 / rate,
        "share_of_matmul_rate": {
            name: gflop * 1e9 / seconds[name] / rate for name in ("torch", "jax")
        },
        # Of an attack: its gradients, of which the forward passes; the rest is steps and balls.
        "share": {
            "gradients": STEPS * seconds["gradient"] / seconds["jax"],
            "forward": STEPS * seconds["forward"] / seconds["jax"],
        },
        "rows": size,
        "runs": runs,
    }


def shown(figures: dict[str, Any]) -> str:
    """The table, and what an attack spends its time on."""
    seconds, share, rate = (figures[k] for k in ("seconds", "share", "share_of_matmul_rate"))
    floor = figures["floor_seconds"], gflop_text(figures["gflop"])
    rows = [
        Comparison(f"PGD-{STEPS}{more}", "torchattacks", *ours_and_theirs, ratio, *floor)
        for more, ours_and_theirs, ratio in (
            ("", (seconds["torch"], seconds["jax"]), figures["ratio"]),
            (
                ", random start",
                (seconds["torch_random"], seconds["jax_random"]),
                figures["ratio_random"],
            ),
        )
    ]
    return table(
        rows,
        f"{share['gradients']:.0%} of it are its ten gradients, of which forward passes "
        f"{share['forward']:.0%}; {rate['torch']:.0%} and {rate['jax']:.0%} of the matmul rate, "
        f"{figures['matmul_gflops']:.0f} GFLOP/s.",
    )


def _budget(random_start: bool) -> Budget:
    epsilon = jnp.float32(EPSILON)
    return Budget(epsilon, steps=STEPS, relative_step=RELATIVE_STEP, random_start=random_start)


def _our_sides(
    model: Llava, batch: dict[str, np.ndarray], x: np.ndarray
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """The attacks and their parts, and the seconds of compiling each."""
    labels, columns = batch["labels"], jnp.asarray(LABELS)

    def goal(model: Llava) -> Objective:
        def logits_of(x: Array, key: PRNGKeyArray) -> Array:
            rows = {name: jnp.asarray(batch[name]) for name in ("input_ids", "attention_mask")}
            rows["pixel_values"] = normalized(x)
            return verdict.label_logits(model, rows, columns)

        return from_logits(logits_of, labels)

    def attack(model: Llava, x: Array, key: PRNGKeyArray, budget: Budget) -> Array:
        return pgd(goal(model), x, key, budget, keep="last").x_adv

    def gradient(model: Llava, x: Array, key: PRNGKeyArray) -> Array:
        return search.evaluate(goal(model), x, key)[1]

    def forward(model: Llava, x: Array, key: PRNGKeyArray) -> Array:
        return goal(model)(x, key).loss

    arguments = model, jnp.asarray(x), jax.random.key(0)
    sides: dict[str, Callable[[], Any]] = {}
    seconds = {}
    for name, function, more in (
        ("jax", attack, (_budget(False),)),
        ("jax_random", attack, (_budget(True),)),
        ("gradient", gradient, ()),
        ("forward", forward, ()),
    ):
        program, seconds[name] = compiled(jax.jit(function), *arguments, *more)
        sides[name] = partial(ready, program, *arguments, *more)
    return sides, seconds


def _torch_sides(
    folder: Path, batch: dict[str, np.ndarray], x: np.ndarray
) -> dict[str, Callable[[], Any]]:
    try:
        import torch
        import torchattacks
        from transformers import LlavaForConditionalGeneration
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: pip install -r requirements-dev.txt, and what its "
            "comment names without its dependencies"
        ) from None

    class Classifier(torch.nn.Module):
        """Pictures in [0, 1] to the two labels' logits."""

        def __init__(self) -> None:
            super().__init__()
            self.base = LlavaForConditionalGeneration.from_pretrained(folder)
            self.rows = {
                name: torch.as_tensor(batch[name]) for name in ("input_ids", "attention_mask")
            }
            self.mean, self.std = (
                torch.tensor(v)[:, None, None] for v in (OPENAI_MEAN, OPENAI_STD)
            )

        def forward(self, x: Any) -> Any:
            pixels = (x - self.mean) / self.std
            outputs = self.base(**self.rows, pixel_values=pixels, logits_to_keep=1)
            return outputs.logits[:, -1, list(LABELS)]

    model = Classifier().eval().requires_grad_(False)
    pictures, labels = torch.as_tensor(x), torch.as_tensor(batch["labels"])
    sides: dict[str, Callable[[], Any]] = {}
    for name, start in (("torch", False), ("torch_random", True)):
        attack = torchattacks.PGD(model, EPSILON, EPSILON * RELATIVE_STEP, STEPS, start)
        sides[name] = partial(attack, pictures, labels)
    return sides
