"""``crossguard bench guard``: LoRA step and scoring against transformers + PEFT in torch.

Same weights, same batch, float32, base frozen on both sides; torch computes the last position's
logits only (``logits_to_keep=1``). The model is `base`'s.

The floor is the useful work at the machine's matmul rate: 2N a token forward, 2N more for the
inputs' gradients of a frozen base; LoRA's own are below 3%.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from crossguard_jax.bench.base import (
    ALPHA,
    LABELS,
    LEARNING_RATE,
    RANK,
    TARGETS,
    make_batch,
    make_folder,
    reading,
    seeing,
)
from crossguard_jax.bench.results import (
    Comparison,
    Measurements,
    compared,
    first_calls,
    gflop_text,
    medians,
    table,
)
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.timing import Timed, interleave, matmul_side
from crossguard_jax.guard.loss import guard_loss
from crossguard_jax.hf.load import load_model
from crossguard_jax.hf.peft import save_adapter
from crossguard_jax.io.progress import rounds
from crossguard_jax.nn import lora, verdict
from crossguard_jax.nn.llava import Llava
from crossguard_jax.train.step import init_state, make_step


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the tables, and writes ``bench_guard.json``."""
    try:
        import peft  # noqa: F401
        import torch
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: pip install -r requirements-dev.txt"
        ) from None
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder, adapter = make_folder(Path(scratch)), Path(scratch) / "adapter"
        base = load_model(folder, remat="names")  # as `configs/guard.py` trains
        assert isinstance(base, Llava)
        model = lora.attach(base, TARGETS, RANK, ALPHA, jax.random.key(0))
        save_adapter(model, adapter, str(folder))
        batch = make_batch(model, args.batch)
        theirs = _torch_sides(folder, adapter, batch)
    ours = _our_sides(model, batch)
    product, product_flops = matmul_side()
    versions = {"jax": jax.__version__, "torch": torch.__version__}
    measurements = Measurements(Path(args.out) / "bench_guard.json", args.threads, versions)
    forward = seeing(model, args.batch) + reading(model, args.batch, batch["input_ids"].shape[1])
    for work, flops in (("step", forward.gradient), ("score", forward.forward)):
        sides = {"torch": theirs[work], "jax": ours[work], "matmul": product}
        timed = interleave(sides, rounds(args.runs, work))
        figures = {"batch": args.batch, "runs": args.runs, **_summary(timed, flops, product_flops)}
        measurements.add(work, figures, shown(work, figures))


def shown(work: str, figures: dict[str, Any]) -> str:
    """The table of ``step`` or of ``score``."""
    seconds, share = figures["seconds"], figures["share_of_matmul_rate"]
    row = Comparison(
        work,
        "torch + PEFT",
        seconds["torch"],
        seconds["jax"],
        figures["ratio"],
        figures["floor_seconds"],
        gflop_text(figures["gflop"]),
    )
    return table(
        [row],
        f"{share['torch']:.0%} and {share['jax']:.0%} of the matmul rate, "
        f"{figures['matmul_gflops']:.0f} GFLOP/s.",
    )


def _our_sides(model: Any, batch: dict[str, np.ndarray]) -> dict[str, Callable[[], None]]:
    graphdef, adapters, frozen = lora.split(model)
    adam = optax.adamw(LEARNING_RATE)
    step = make_step(guard_loss(graphdef, LABELS), adam)
    state = [init_state(adapters, adam, 0)]
    arrays = {k: jax.numpy.asarray(v) for k, v in batch.items()}
    labels = jax.numpy.asarray(LABELS)

    @jax.jit
    def score(adapters: Any, frozen: Any, batch: Any) -> Any:
        model = lora.merge(graphdef, adapters, frozen)
        return verdict.p_positive(verdict.label_logits(model, batch, labels))

    def run_step() -> None:
        state[0], metrics = step(state[0], frozen, arrays)
        jax.block_until_ready((state[0], metrics))

    def run_score() -> None:
        score(adapters, frozen, arrays).block_until_ready()

    return {"step": run_step, "score": run_score}


def _torch_sides(
    folder: Path, adapter: Path, batch: dict[str, np.ndarray]
) -> dict[str, Callable[[], None]]:
    import torch
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    base = LlavaForConditionalGeneration.from_pretrained(folder)
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, LEARNING_RATE)
    tensors = {k: torch.as_tensor(v) for k, v in batch.items()}
    labels = tensors.pop("labels")

    def logits() -> Any:
        return model(**tensors, logits_to_keep=1).logits[:, -1, list(LABELS)]

    def run_step() -> None:
        loss = torch.nn.functional.cross_entropy(logits(), labels)
        loss.backward()
        adam.step()
        adam.zero_grad()

    def run_score() -> None:
        with torch.inference_mode():
            logits().softmax(-1)

    return {"step": run_step, "score": run_score}


def _summary(timed: dict[str, Timed], flops: float, product_flops: float) -> dict[str, Any]:
    rate, seconds = product_flops / timed["matmul"].median, medians(timed, "matmul")
    return {
        "ratio": compared(timed, "torch", "jax"),
        "seconds": seconds,
        "first_call_seconds": first_calls(timed, "matmul"),
        "gflop": flops / 1e9,
        "floor_seconds": flops / rate,
        "matmul_gflops": rate / 1e9,
        "share_of_matmul_rate": {name: flops / each / rate for name, each in seconds.items()},
    }
