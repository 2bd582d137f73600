"""This package's side of ``crossguard bench gpu``: a process that prints a JSON line a row."""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from crossguard_jax.attacks.logits import from_logits
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget
from crossguard_jax.bench import attacks_mbat
from crossguard_jax.bench.attacks_parts import EPSILON, normalized, picture
from crossguard_jax.bench.base import (
    ALPHA,
    BEFORE,
    LABELS,
    LEARNING_RATE,
    RANK,
    TARGETS,
    Work,
    make_batch,
    reading,
    seeing,
)
from crossguard_jax.bench.gpu_sizes import Sizes, report, timed
from crossguard_jax.bench.kernels import kernel_seconds, shares
from crossguard_jax.cmai.arm import Controller, Knob
from crossguard_jax.cmai.immunize_step import CmaiState
from crossguard_jax.core.tree import count, named_leaves
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.guard.loss import guard_loss
from crossguard_jax.impforge.ppo.policy import RewriterPolicy, make_policy
from crossguard_jax.impforge.ppo.update import PpoSettings, Trajectory, update
from crossguard_jax.nn import lora, prefix, verdict
from crossguard_jax.nn.clip import VisionConfig
from crossguard_jax.nn.llama import LlamaConfig
from crossguard_jax.nn.llava import Llava, LlavaConfig
from crossguard_jax.train.step import init_state, make_step

PGD_STEPS = 10
LONGEST = 24
_REWRITER_TARGETS = r".*\.(q|k|v|o|gate|up|down)_proj"

Figures = dict[str, Any]


def random_llava(sizes: Sizes) -> Llava:
    """A model of random weights, made where they lie, tensor by tensor."""
    config = LlavaConfig(
        VisionConfig(**sizes.vision, remat="names"), LlamaConfig(**sizes.text, remat="names")
    )
    abstract = jax.eval_shape(lambda: Llava(config, jax.random.key(0)))
    graphdef, state = nnx.split(abstract, graph=False)

    @partial(jax.jit, static_argnums=(1, 2))
    def normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: str) -> Array:
        return (0.02 * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    def made(i: int, name: str, shape: tuple[int, ...]) -> Array:
        if name.endswith(("scale", "bias")):
            return jnp.full(shape, name.endswith("scale"), sizes.dtype)
        return normal(jax.random.key(i), shape, sizes.dtype)

    leaves = [(name, variable) for name, variable in named_leaves(state)]
    filled = [
        variable.replace(made(i, name, variable.shape)) for i, (name, variable) in enumerate(leaves)
    ]
    paths = [tuple(name.split(".")) for name, _ in leaves]
    return nnx.merge(graphdef, nnx.from_flat_state(zip(paths, filled, strict=True)))


class Side:
    """The model, and each row of the table by name."""

    def __init__(self, sizes: Sizes):
        self.sizes, self.model = sizes, random_llava(sizes)
        self.weights = count(nnx.split(self.model, graph=False)[1])
        self.adapted = lora.attach(self.model, TARGETS, RANK, ALPHA, jax.random.key(0))
        self.rollouts: dict[int, Any] = {}

    def card(self) -> Figures:
        """The device, and its rate on one large matrix product in the model's own type."""
        n = self.sizes.product
        a = jax.random.normal(jax.random.key(0), (n, n)).astype(self.sizes.dtype)
        product = jax.jit(lambda x: x @ x)
        figures = timed(lambda: product(a).block_until_ready(), least=9)
        return {
            "device": jax.devices()[0].device_kind,
            "flops_per_second": 2.0 * n**3 / figures["seconds"],
            "versions": {"jax": jax.__version__},
        }

    def rows(self, n: int) -> dict[str, Array]:
        """Random rows on the device, pictures in the model's type."""
        arrays = make_batch(self.model, n, self.sizes.n_text)
        batch = {name: jnp.asarray(x) for name, x in arrays.items()}
        pixels = batch["pixel_values"].astype(self.sizes.dtype)
        return batch | {"pixel_values": pixels}

    def work(self, n: int) -> tuple[Work, int]:
        """What a forward pass on ``n`` rows must multiply, and their tokens."""
        tokens = self.model.config.tokens_per_image + self.sizes.n_text
        return seeing(self.model, n) + reading(self.model, n, tokens), n * tokens

    def step(self, n: int) -> Figures:
        """A LoRA step on ``n`` rows."""
        graphdef, adapters, frozen = lora.split(self.adapted)
        adam = optax.adamw(LEARNING_RATE)
        state = init_state(adapters, adam, 0)
        work, tokens = self.work(n)
        step = make_step(guard_loss(graphdef, LABELS), adam)
        run, peak = _stepping(step, state, frozen, self.rows(n))
        return anatomy(run) | _figures(n, work.gradient, 4 * self.weights * tokens, peak)

    def score(self, n: int) -> Figures:
        """p_unsafe of ``n`` rows."""
        graphdef, adapters, frozen = lora.split(self.adapted)
        labels = jnp.asarray(LABELS)

        @jax.jit
        def score(adapters: Any, frozen: Any, batch: Any) -> Array:
            model = lora.merge(graphdef, adapters, frozen)
            return verdict.p_positive(verdict.label_logits(model, batch, labels))

        work, tokens = self.work(n)
        run, peak = _repeating(score, adapters, frozen, self.rows(n))
        return anatomy(run) | _figures(n, work.forward, 2 * self.weights * tokens, peak)

    def pgd(self, n: int) -> Figures:
        """Ten steps on ``n`` pictures."""
        batch, columns, dtype = self.rows(n), jnp.asarray(LABELS), self.sizes.dtype
        budget = Budget(jnp.float32(EPSILON), steps=PGD_STEPS, random_start=True)

        @jax.jit
        def attack(model: Llava, batch: Any, x: Array, key: PRNGKeyArray) -> Array:
            def logits_of(x: Array, key: PRNGKeyArray) -> Array:
                rows = batch | {"pixel_values": normalized(x).astype(dtype)}
                return verdict.label_logits(model, rows, columns)

            objective = from_logits(logits_of, batch["labels"])
            return pgd(objective, x, key, budget, keep="last").x_adv

        work, tokens = self.work(n)
        x = jnp.asarray(picture(self.model, n))
        run, peak = _repeating(attack, self.model, batch, x, jax.random.key(0))
        flops = PGD_STEPS * work.gradient, PGD_STEPS * 4 * self.weights * tokens
        return timed(run) | _figures(n, *flops, peak)

    def ppo_2(self, n: int) -> Figures:
        """An iteration with two epochs."""
        return self.ppo(n, 2)

    def ppo_4(self, n: int) -> Figures:
        """An iteration with four epochs."""
        return self.ppo(n, 4)

    def ppo(self, n: int, epochs: int) -> Figures:
        """An iteration on ``n`` prompts: rollout and update, rewards given."""
        sizes, language = self.sizes, self.model.language_model
        policy, trainable, frozen = make_policy(
            language,
            targets=_REWRITER_TARGETS,
            rank=RANK,
            alpha=ALPHA,
            key=jax.random.key(0),
            max_new_tokens=sizes.new,
            eos_ids=(2,),
            pad_id=0,
        )
        settings = PpoSettings(epochs=epochs, minibatches=sizes.minibatches)
        adam = optax.adamw(LEARNING_RATE)
        prompt = np.random.default_rng(0).integers(3, 31_000, (n, sizes.prompt), dtype=np.int32)
        scores = jax.random.normal(jax.random.key(1), (n,))

        def improve(trainable: Any, opt_state: Any, frozen: Any, t: Trajectory) -> Any:
            key, kl_coef = jax.random.key(2), jnp.float32(settings.kl_coef)
            rest = t, scores, kl_coef, key
            return update(policy.evaluate, adam, settings, trainable, opt_state, frozen, *rest)

        key = jax.random.key(0)
        if n not in self.rollouts:
            write = jax.jit(partial(_rollout, policy))
            self.rollouts[n] = write.lower(trainable, frozen, prompt, key).compile()
        rollout = self.rollouts[n]
        trajectory = rollout(trainable, frozen, prompt, key)
        now = [_copied(trainable), adam.init(trainable)]
        better = jax.jit(improve, donate_argnums=(0, 1)).lower(*now, frozen, trajectory).compile()

        def run() -> None:
            t = rollout(now[0], frozen, prompt, key)
            *now[:], metrics = better(*now, frozen, t)
            jax.block_until_ready((now, metrics))

        def sampled() -> None:
            jax.block_until_ready(rollout(now[0], frozen, prompt, key))

        tokens, head = sizes.prompt + sizes.new, 2.0 * language.config.hidden_size * n * sizes.new
        passed = reading(self.model, n, tokens) + Work(head * language.config.vocab_size, 0.0)
        # Sampling, reference and critic; then policy and critic, there and back, every epoch.
        least = 3 * passed.forward + 2 * epochs * passed.gradient
        nominal = (3 + 4 * epochs) * 2 * count(nnx.split(language, graph=False)[1]) * n * tokens
        peak = max(_peak(rollout), _peak(better))
        figures = anatomy(run) | _figures(n, least, nominal, peak)
        return figures | {"rollout_seconds": timed(sampled)["seconds"]}

    def mbat(self, n: int) -> Figures:
        """A step of MBAT on ``n`` rows."""
        graphdef, adapters, base = lora.split(self.adapted)
        check_graphdef, check = nnx.split(attacks_mbat.consistency_check(self.model), graph=False)
        adam, k = optax.adamw(LEARNING_RATE), self.sizes.inner_steps
        beta, epsilon, share = (Knob(value, value) for value in (0.1, EPSILON, 0.5))
        controller = Controller(0.0, beta, epsilon, share)
        width = self.model.config.text.hidden_size
        programs = attacks_mbat.steps((graphdef, check_graphdef), adam, width, controller, [k])
        state = CmaiState(**vars(init_state(adapters, adam, 0)), arm=controller.start())
        rows = make_batch(self.model, n, self.sizes.n_text)
        batch = attacks_mbat.make_rows(self.model, rows)
        frozen = {"model": base, "check": check}
        run, peak = _stepping(programs[f"k{k}"], state, frozen, batch)
        work, tokens = self.work(n)
        flops = (k + 2) * work.gradient, (k + 2) * 4 * self.weights * tokens
        return anatomy(run) | _figures(n, *flops, peak) | {"inner_steps": k}

    def prefix(self, n: int) -> Figures:
        """``n`` texts on one picture: its keys and values are read once, or for each text."""
        model, sizes, columns = self.model, self.sizes, jnp.asarray(LABELS)
        first, place = self.rows(1), BEFORE + model.config.tokens_per_image
        behind = sizes.n_text - BEFORE
        texts = np.random.default_rng(1).integers(3, 31_000, (n, behind), dtype=np.int32)

        @jax.jit
        def together(model: Llava, pixels: Array, prompt: Array, texts: Array) -> Array:
            x = model.place(prompt, model.image_features(pixels))
            language, seen = model.language_model, jnp.ones(prompt.shape, bool)
            cache = language.prefill(x, seen, prompt.shape[1])[1]
            last = jnp.full(1, texts.shape[1] - 1)
            return prefix.last_logits(language, cache, texts[None], last, columns, chunk=n)[0]

        @jax.jit
        def alone(model: Llava, pixels: Array, ids: Array) -> Array:
            mask = jnp.ones(ids.shape, bool)
            return model.last_logits(ids, pixels, mask, columns)

        pixels, prompt = first["pixel_values"], first["input_ids"][:, :place]
        whole = [jnp.concatenate([prompt, text[None]], axis=1) for text in texts]
        run, peak = _repeating(together, model, pixels, prompt, texts)
        figures = timed(run)
        single = timed(lambda: jax.block_until_ready([alone(model, pixels, ids) for ids in whole]))
        apart = jnp.concatenate([alone(model, pixels, ids) for ids in whole])
        difference = float(jnp.abs(together(model, pixels, prompt, texts) - apart).max())
        work = seeing(model, 1) + reading(model, 1, place) + reading(model, n, behind, place)
        each = seeing(model, 1) + reading(model, 1, place + behind)
        return (
            figures
            | _figures(n, work.forward, 2 * self.weights * (place + n * behind), peak)
            | {
                "one_by_one_seconds": single["seconds"],
                "speedup": single["seconds"] / figures["seconds"],
                "speedup_by_flops": n * each.forward / work.forward,
                "largest_difference": difference,
            }
        )


def anatomy(run: Callable[[], object]) -> Figures:
    """`timed`, and what of it was spent on what kernels."""
    figures = timed(run)
    try:
        kernels = kernel_seconds(run)
    except Exception as error:  # a profiler that is missing costs no measurement
        return figures | {"no_kernels": repr(error)[:300]}
    longest = {name: round(seconds, 6) for name, seconds in [*kernels.items()][:LONGEST]}
    return figures | {"shares": shares(kernels, figures["seconds"]), "kernels": longest}


def _figures(n: int, flops: float, nominal: float, peak: int) -> Figures:
    """``flops``: what must be multiplied at least; ``nominal``: by the rule of 4N a token."""
    return {"rows": n, "flops": flops, "nominal_flops": nominal, "peak_bytes": peak}


def _peak(program: Any) -> int:
    """Bytes of a program's arguments, results and temporaries."""
    m = program.memory_analysis()
    sizes = m.argument_size_in_bytes, m.output_size_in_bytes, m.temp_size_in_bytes
    return sum(sizes) - m.alias_size_in_bytes


def _repeating(function: Any, *arguments: Any) -> tuple[Callable[[], None], int]:
    program = function.lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments)), _peak(program)


def _stepping(step: Any, state: Any, *arguments: Any) -> tuple[Callable[[], None], int]:
    """A step on from wherever the last one ended."""
    program, now = step.lower(state, *arguments).compile(), [_copied(state)]

    def run() -> None:
        now[0], metrics = program(now[0], *arguments)
        jax.block_until_ready((now[0], metrics))

    return run, _peak(program)


def _copied(tree: Any) -> Any:
    """Programs donate the state that they are given."""
    return jax.tree.map(jnp.copy, tree)


def _rollout(
    policy: RewriterPolicy, trainable: Any, frozen: Any, prompt: Array, key: PRNGKeyArray
) -> Trajectory:
    mask = jnp.ones(prompt.shape, bool)
    sampled = policy.sample(trainable, frozen, prompt, mask, key)
    inputs = {"prompt": prompt, "prompt_mask": mask, "tokens": sampled.tokens, "mask": sampled.mask}
    logprobs, values = policy.evaluate(trainable, frozen, inputs)
    reference, n = policy.reference(frozen, inputs), len(prompt)
    ended, category = jnp.ones(n, bool), jnp.zeros(n, jnp.int32)
    return Trajectory(inputs, sampled.mask, ended, logprobs, reference, values, category)


def halves(n: int) -> Iterator[int]:
    """``n``, and half of it for as long as that is a whole number."""
    while n:
        yield n
        n = n // 2 if n % 2 == 0 else 0


def main(argument: str) -> None:
    """Measures the rows that ``argument`` names, of its sizes; with half the rows where all of
    them do not fit."""
    order = json.loads(argument)
    side = Side(Sizes(**order["sizes"]))
    sizes = side.sizes
    report("card", **side.card())
    most = {"ppo_2": sizes.texts, "ppo_4": sizes.texts, "prefix": sizes.questions}
    most["mbat"] = sizes.mbat_rows
    for name in order["rows"]:
        for n in halves(most.get(name, sizes.rows)):
            try:
                report(name, **getattr(side, name)(n))
                break
            except Exception as error:  # card time is scarce: the other rows are still to be had
                report(name, error=repr(error)[:300], rows=n)
                jax.clear_caches()
                if "RESOURCE_EXHAUSTED" not in str(error):
                    break


if __name__ == "__main__":
    main(sys.argv[1])
