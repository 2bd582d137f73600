"""``crossguard bench guard``: LoRA step and scoring against transformers + PEFT in torch.

Same weights, same batch, float32, base frozen on both sides; torch computes the last position's
logits only (``logits_to_keep=1``). The model is a LLaVA with a CLIP ViT d=256 x 8 at 224 px and a
Llama d=512 x 8; a row has 256 picture tokens and 64 text tokens.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import count
from crossguard_jax.guard.recipe import guard_loss
from crossguard_jax.hf.load import load_model
from crossguard_jax.hf.peft import save_adapter
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.io.timing import Timed, interleave, matmul_side, ratios
from crossguard_jax.nn import lora, verdict
from crossguard_jax.train.step import init_state, make_step

LABELS = (1000, 2000)
TARGETS = r"(vision_tower|language_model)\..*\.(q|k|v|o|out|gate|up|down)_proj"
RANK, ALPHA, LEARNING_RATE = 16, 32.0, 1e-4
N_TEXT = 64


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the table, and writes ``bench_guard.json``."""
    try:
        import peft  # noqa: F401
        import torch
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: pip install -r requirements-dev.txt"
        ) from None
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder, adapter = _make_folder(Path(scratch))
        model = lora.attach(load_model(folder), TARGETS, RANK, ALPHA, jax.random.key(0))
        save_adapter(model, adapter, str(folder))
        batch = _batch(model, args.batch)
        theirs = _torch_sides(folder, adapter, batch)
    ours = _our_sides(model, batch)
    product, product_flops = matmul_side()
    found = {}
    floors = _flops(model, batch)
    for work in ("step", "score"):
        timed = interleave(
            {"torch": theirs[work], "jax": ours[work], "matmul": product}, args.runs, work
        )
        found[work] = _summary(timed, floors[work], product_flops)
    document = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{args.threads} threads for torch",
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "batch": args.batch,
        "runs": args.runs,
        **found,
    }
    write_atomic(Path(args.out) / "bench_guard.json", json.dumps(document, indent=2) + "\n")
    _print(found)


def _make_folder(scratch: Path) -> tuple[Path, Path]:
    """The bench's model with random weights, as transformers saves it."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=4,
        image_size=224,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32_064,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32_000)
    LlavaForConditionalGeneration(config).save_pretrained(scratch / "base")
    return scratch / "base", scratch / "adapter"


def _batch(model: Any, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    config = model.config
    ids = rng.integers(3, 31_000, (size, config.tokens_per_image + N_TEXT), dtype=np.int64)
    ids[:, 4 : 4 + config.tokens_per_image] = config.image_token_id
    side = config.vision.image_size
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "pixel_values": rng.normal(size=(size, 3, side, side)).astype(np.float32),
        "labels": rng.integers(0, 2, size),
    }


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


def _flops(model: Any, batch: dict[str, np.ndarray]) -> dict[str, float]:
    """The useful work: 2N a token forward, 2N more for the inputs' gradients of a frozen base.

    N counts matrix parameters that every position meets (the unused vision layer and the head are
    left out), attention adds its two products; LoRA's own are below 3% and left out.
    """
    config, size = model.config, len(batch["input_ids"])
    n_tokens, p = batch["input_ids"].shape[1], config.vision.n_patches + 1
    vision = count(model.vision_tower.layers) * (1 - 1 / config.vision.num_hidden_layers)
    language = count(model.language_model.layers)
    attention = (
        4 * n_tokens** 2 * config.text.hidden_size * config.text.num_hidden_layers / 2
        + 4 * p** 2 * config.vision.hidden_size * (config.vision.num_hidden_layers - 1)
    )
    projector = count(model.multi_modal_projector) * config.vision.n_patches
    forward = size * (2 * (vision * p + language * n_tokens + projector) + attention)
    return {"score": forward, "step": 2 * forward}


def _summary(timed: dict[str, Timed], flops: float, product_flops: float) -> dict[str, Any]:
    low, median, high = ratios(timed["torch"], timed["jax"])
    rate = product_flops / timed["matmul"].median
    return {
        "ratio": {"median": median, "low": low, "high": high},
        "seconds": {name: timed[name].median for name in ("torch", "jax")},
        "first_call_seconds": {name: timed[name].first for name in ("torch", "jax")},
        "gflop": flops / 1e9,
        "matmul_gflops": rate / 1e9,
        "share_of_matmul_rate": {
            name: flops / timed[name].median / rate for name in ("torch", "jax")
        },
    }


def _print(found: dict[str, Any]) -> None:
    print("| work | torch + PEFT | this package | ratio (low to high) | share of matmul rate |")
    print("| --- | --- | --- | --- | --- |")
    for work, s in found.items():
        r, share = s["ratio"], s["share_of_matmul_rate"]
        print(
            f"| {work} | {s['seconds']['torch']:.3f} s | {s['seconds']['jax']:.3f} s "
            f"| {r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f}) "
            f"| {share['torch']:.0%} and {share['jax']:.0%} of {s['matmul_gflops']:.0f} GFLOP/s |"
        )
