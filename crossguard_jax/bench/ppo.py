"""One PPO iteration of the rewriter against TRL's.

Both sides load the same Llama folder (d=256 x 4, random weights) and have the same prompts without
padding, LoRA on policy and critic, the policy without its adapter as the reference, float32, the
same epochs and minibatches, and a stub that reads the texts in place of rewards. Random weights end
hardly a text early, so the lengths are equal too. TRL's critic has a base of its own, ours shares
the policy's; TRL takes the sampler's log-probabilities, ours evaluates them once more.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from crossguard_jax.bench import trl_worker
from crossguard_jax.bench.results import (
    Comparison,
    compared,
    first_calls,
    gflop_text,
    medians,
    table,
)
from crossguard_jax.bench.trl_side import Worker, settings_for
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, make_mesh
from crossguard_jax.core.timing import interleave, matmul_side
from crossguard_jax.core.tree import count
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.impforge.ppo import recipe
from crossguard_jax.impforge.ppo.rewriter import Rewriter
from crossguard_jax.impforge.ppo.rounds import Rounds
from crossguard_jax.impforge.ppo.update import PpoSettings
from crossguard_jax.impforge.rewards.rewards import Rewards
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.io.progress import rounds
from crossguard_jax.train.optim import optimizer

CONFIG = "configs/impforge.py:tiny"
WIDTH, INNER, LAYERS, HEADS = 256, 688, 4, 4
LEARNING_RATE = 1e-4


class StubRewards(Rewards):
    """A stub that reads the texts, as the one on TRL's side does, in place of the three rewards."""

    width = 1

    def __init__(self) -> None:
        self.frozen, self.hashes = {}, {}

    def context(self, triplets: Sequence[Triplet]) -> dict[str, np.ndarray]:
        return {}

    def encode(self, texts: Sequence[str], triplets: Sequence[Triplet]) -> dict[str, np.ndarray]:
        return {"score": np.asarray([trl_worker.share_of_vowels(t) for t in texts], np.float32)}

    def components(
        self, frozen: Any, tokens: Any, token_mask: Any, context: Any, encoded: Mapping[str, Any]
    ) -> dict[str, Any]:
        nothing = jnp.zeros_like(encoded["score"])
        return {"safety": encoded["score"], "semantic": nothing, "overlap": nothing}

    def vectors(self, frozen: Any, encoded: Mapping[str, Any]) -> Any:
        return jnp.zeros((len(encoded["score"]), self.width))


def against_trl(scratch: Path, python: str, batch: int, threads: int, runs: int) -> dict[str, Any]:
    """Seconds of an iteration on both sides.

    Args:
        scratch: a folder for the model.
        python: that of the environment with TRL.
        batch: texts an iteration.
        threads: torch's.
        runs: counted rounds.

    Raises:
        UserError: TRL's process fails, or the two sides do not do the same.
    """
    folder = _make_folder(scratch / "llama")
    config = _config(folder, batch)
    rewriter = Rewriter(config.rewriter, StubRewards(), config.ppo.seed)
    vocabulary = len(rewriter.tokenizer)
    shape = 4 * batch, config.rewriter.prompt_length
    prompts = np.random.default_rng(0).integers(8, vocabulary, shape).astype(np.int32)
    settings = scratch / "trl.json"
    settings.write_text(json.dumps(settings_for(config, folder, prompts, threads, scratch)))
    with Worker([python, "-I", trl_worker.__file__, str(settings)], scratch / "trl.log") as trl:
        _check_equal(rewriter, prompts[:2], trl.hello)
        rows = [
            Triplet(str(i), "a question", "", b"", "", "", 0.0, {}) for i in range(len(prompts))
        ]
        arrays = {"prompt": prompts, "prompt_mask": np.ones(shape, bool)}
        product, product_flops = matmul_side()
        sides: dict[str, Callable[[], Any]] = {
            "trl": trl.iterate,
            "jax": _our_side(config, rewriter, rows, arrays),
            "matmul": product,
        }
        timed = interleave(sides, rounds(runs, "PPO iteration"))
    rate = product_flops / timed["matmul"].median
    flops = _flops(config, vocabulary)
    return {
        "ratio": compared(timed, "trl", "jax"),
        "seconds": medians(timed, "matmul"),
        "first_call_seconds": first_calls(timed, "matmul"),
        "runs": runs,
        "batch": batch,
        "tokens": {"prompt": shape[1], "text": config.rewriter.max_new_tokens},
        "trained_parameters": trl.hello["trained"],
        "gflop": flops / 1e9,
        "floor_seconds": flops / rate,
        "matmul_gflops": rate / 1e9,
        "versions": trl.hello["versions"],
    }


def shown(figures: dict[str, Any]) -> str:
    """The table."""
    seconds = figures["seconds"]
    floor = figures["floor_seconds"], gflop_text(figures["gflop"])
    row = "PPO iteration", "TRL", seconds["trl"], seconds["jax"], figures["ratio"], *floor
    return table([Comparison(*row)])


def _config(folder: Path, batch: int) -> Any:
    """Ours without what TRL does not have."""
    return load_config(
        CONFIG,
        [
            *(f"--config.rewriter.path={folder}", f"--config.ppo.batch_size={batch}"),
            *(f"--config.optim.learning_rate={LEARNING_RATE}", "--config.optim.clip_norm=0.0"),
            *("--config.optim.schedule=constant", "--config.optim.warmup_steps=0"),
            *("--config.breadth.quota=false", "--config.breadth.normalize_by_category=false"),
        ],
    )


def _make_folder(folder: Path) -> Path:
    """A Llama with random weights, as transformers saves it, with the shipped tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    shipped = resolve_folder("toy://rewriter")
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shipped / name, folder)
    return folder


def start(config: ConfigDict, rewriter: Rewriter, arrays: Mapping[str, np.ndarray]) -> Any:
    """State, ``improve`` and batches as `recipe.train_rewriter` makes them, on one device."""
    n = len(arrays["prompt"])
    breadth = recipe.Breadth(**config.breadth)
    settings = PpoSettings(
        **config.ppo.settings, normalize_by_category=breadth.normalize_by_category
    )
    updates = config.ppo.iterations * settings.epochs * settings.minibatches
    adam = optimizer(config.optim, updates)
    mesh = make_mesh(1, devices=jax.devices()[:1])
    state = recipe.first_state(rewriter, adam, config, mesh, DEFAULT_RULES)
    weights = dict(config.rewards.weights)
    improve = recipe.make_improve(
        rewriter.policy, rewriter.rewards, adam, settings, weights, breadth, 1
    )
    arrays = {**arrays, "category": np.zeros(n, np.int32)}
    batches = Rounds(arrays, [0] * n, config.ppo.batch_size, config.ppo.seed, breadth.quota)
    return state, improve, batches


def _our_side(
    config: ConfigDict, rewriter: Rewriter, rows: list[Triplet], arrays: dict[str, np.ndarray]
) -> Callable[[], None]:
    state, improve, batches = start(config, rewriter, arrays)
    iteration = recipe.make_iteration(rewriter, improve, rows, dict(config.rewards.weights))
    frozen, now = (rewriter.frozen, rewriter.rewards.frozen), [state]

    def run() -> None:
        now[0], metrics = iteration(now[0], frozen, next(batches))
        jax.block_until_ready((now[0], metrics))

    return run


def _check_equal(rewriter: Rewriter, prompts: np.ndarray, hello: Mapping[str, Any]) -> None:
    """The same weights, and as many of them trained."""
    first, rest = prompts[:, :1], prompts[:, 1:]
    inputs = {"prompt": first, "prompt_mask": np.ones_like(first, bool)}
    inputs |= {"tokens": rest, "mask": np.ones_like(rest, bool)}
    ours = np.asarray(jax.jit(rewriter.policy.reference)(rewriter.frozen, inputs)).sum(axis=1)
    if not np.allclose(ours, hello["logprobs"], rtol=1e-5):
        raise UserError(f"TRL's model is another one: log p {hello['logprobs']}, ours {ours}")
    trained = count(rewriter.start) - 1  # our critic's head has a bias
    if trained != hello["trained"]:
        raise UserError(f"TRL trains {hello['trained']:,} parameters, we train {trained:,}")


def _flops(config: ConfigDict, vocabulary: int) -> float:
    """The least that an iteration takes.

    Sampling, reference and critic are a forward pass over prompt and text each, the update is
    ``epochs`` forward passes of policy and critic, and as much again for the inputs' gradients of
    the frozen base. A forward pass is 2N a token with the adapter's N among them, two products of
    attention below the diagonal, and the head at the text's tokens. Of the last layer a prompt
    needs keys and values alone.
    """
    b, p = config.ppo.batch_size, config.rewriter.prompt_length
    n, rank = config.rewriter.max_new_tokens, config.rewriter.lora.rank
    square, wide = (WIDTH, WIDTH), (WIDTH, INNER)

    def passed(numbers: Callable[[int, int], int]) -> int:
        """What a forward pass multiplies with, by the numbers that each matrix brings."""
        keys_values, rest = 2 * numbers(*square), 2 * numbers(*square) + 3 * numbers(*wide)
        return ((LAYERS - 1) * (keys_values + rest) + keys_values) * (p + n) + rest * n

    attention = 2 * WIDTH * ((LAYERS - 1) * (p + n) ** 2 + n * (2 * p + n))
    base = 2 * passed(lambda i, o: i * o) + attention
    adapted, head = base + 2 * passed(lambda i, o: rank * (i + o)), 2 * WIDTH * vocabulary * n
    rollout = (adapted + head) + (base + head) + adapted
    update = config.ppo.settings.epochs * 2 * ((adapted + head) + adapted)
    return float(b * (rollout + update))
