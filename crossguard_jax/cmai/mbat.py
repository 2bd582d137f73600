"""MBAT: adversarial training across both modalities, in one jitted step with its inner attack.

The inner problem perturbs picture, text embeddings, or both:

- ``seed``: ``max alpha L_task - beta S_c``, as proposed. It lowers S_c, so it makes examples that
  the consistency check catches already.
- ``evasive``: ``max alpha L_task - evasion max(0, tau - S_c)``: wrong while still consistent.
- ``both``: the rows of a batch take turns.

The outer problem is ``(1 - lambda) L_task(clean) + lambda L_task(adversarial)``. beta, epsilon and
lambda are ARM's (`cmai.arm`): they change as it trains, and nothing compiles anew.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from crossguard_jax.attacks.joint import Inputs, Part, joint_pgd
from crossguard_jax.attacks.problem import NORMS, Budget, Outcome
from crossguard_jax.cmai.arm import ArmState, Controller
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray
from crossguard_jax.train.step import Loss, Metrics, Step, TrainState

INNER = ("seed", "evasive", "both")
PERTURB = ("picture", "text", "both")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """What a model makes of a batch; [B] float32 each.

    Attributes:
        loss: of the task, in nats.
        margin: above 0 the answer is wrong.
        s_c: how well the text fits the picture.
        h_v: what S_c sees of the picture, [B, D_v], where a check learns beside the model.
    """

    loss: Any
    margin: Any
    s_c: Any
    h_v: Any = None


Answer = Callable[[Any, Any, Any, Inputs], Answers]
"""``answer(trainable, frozen, batch, (pixels [B, C, X, Y] in [0, 1], shift [B, L, D]))``; the shift
is added to the embeddings of the batch's tokens, and the model normalizes the pixels itself."""

Prepare = Callable[[Any, Any, Any], Any]
"""``prepare(trainable, frozen, batch) -> batch``."""


@dataclass(frozen=True)
class MbatSettings:
    """The inner attack.

    Attributes:
        inner: a name in `INNER`.
        perturb: a name in `PERTURB`.
        alpha: weight of the task's loss.
        evasion: weight of falling below tau, in the evasive problem.
        norm: of the picture's ball; its radius is ARM's epsilon.
        steps: gradient steps, k. A step of training costs about two clean ones (the clean rows and
            the adversarial ones), and less than one more for each of these.
        text_epsilon: L2 radius for each token's embedding, in their units.

    Raises:
        UserError: an unknown name, or a number that is none.
    """

    inner: str = "both"
    perturb: str = "picture"
    alpha: float = 1.0
    evasion: float = 10.0
    norm: str = "linf"
    steps: int = 5
    text_epsilon: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (("inner", INNER), ("perturb", PERTURB), ("norm", NORMS)):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"mbat.{name} {getattr(self, name)!r} is none of {', '.join(choices)}"
                )
        for name in ("alpha", "evasion", "text_epsilon"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UserError(f"mbat.{name} {getattr(self, name)!r}: 0 or a positive number")
        if self.steps < 1:
            raise UserError(f"mbat.steps {self.steps}: a whole number above 0")
        if self.perturb != "picture" and not self.text_epsilon:
            raise UserError(f"mbat.text_epsilon is 0, and mbat.perturb is {self.perturb!r}")


def inner_loss(settings: MbatSettings, answers: Answers, arm: ArmState) -> Float[Array, " B"]:
    """What the adversary raises, a row each."""
    of_task = settings.alpha * answers.loss
    seed = of_task - arm.beta * answers.s_c
    evasive = of_task - settings.evasion * jnp.maximum(arm.tau - answers.s_c, 0.0)
    if settings.inner == "both":
        odd = jnp.arange(of_task.shape[0]) % 2 == 1
        return jnp.where(odd, evasive, seed)
    return seed if settings.inner == "seed" else evasive


def perturbed(
    answer: Answer,
    settings: MbatSettings,
    trainable: Any,
    frozen: Any,
    batch: Any,
    clean: Inputs,
    key: PRNGKeyArray,
    arm: ArmState,
) -> Inputs:
    """The adversarial inputs of a batch: the last iterate of one try from a random start."""
    radius, k = jnp.float32(settings.text_epsilon), settings.steps
    embeddings = Budget(radius, "l2", k, low=-math.inf, high=math.inf)
    parts = (
        Part(Budget(arm.epsilon, settings.norm, k)),
        Part(embeddings, batch["text_mask"], per_token=True),
    )
    moved = {"picture": (0,), "text": (1,), "both": (0, 1)}[settings.perturb]

    def whole(some: Inputs) -> Inputs:
        inputs = list(clean)
        for i, x in zip(moved, some, strict=True):
            inputs[i] = x
        return tuple(inputs)

    def objective(some: Inputs, key: PRNGKeyArray) -> Outcome:
        outputs = answer(trainable, frozen, batch, whole(some))
        return Outcome(inner_loss(settings, outputs, arm), outputs.margin)

    start, balls = tuple(clean[i] for i in moved), tuple(parts[i] for i in moved)
    result = joint_pgd(objective, start, key, balls, keep_best=False)
    return jax.lax.stop_gradient(whole(result.x_adv))


def mbat_loss(
    answer: Answer,
    settings: MbatSettings,
    width: int,
    trainable: Any,
    frozen: Any,
    batch: Any,
    key: PRNGKeyArray,
    arm: ArmState,
) -> tuple[Float[Array, ""], tuple[Metrics, Float[Array, " B"], dict[str, Array]]]:
    """The outer loss of a batch, with figures, S_c of the adversarial rows for ARM, and what a loss
    beside it may add to the batch: ``attacked``, the adversarial pixels; and ``h_v`` and
    ``attacked_h_v``, where the model gives them.

    Args:
        answer: the model.
        settings: the inner attack.
        width: D, of the model's token embeddings.
        trainable: what is trained.
        frozen: what is not.
        batch: ``pixels`` [B, C, X, Y] in [0, 1]; ``text_mask`` [B, L], which tokens' embeddings may
            move; and what ``answer`` reads.
        key: of the attack's start.
        arm: beta, epsilon, lambda, and what the evasive adversary stays above.
    """
    clean = (batch["pixels"], jnp.zeros((*batch["text_mask"].shape, width), jnp.float32))
    at = jax.lax.stop_gradient(trainable)
    attacked = perturbed(answer, settings, at, frozen, batch, clean, key, arm)
    both = jax.tree.map(lambda *rows: jnp.stack(rows), clean, attacked)
    outputs = jax.vmap(lambda inputs: answer(trainable, frozen, batch, inputs))(both)
    plain, adversarial = (jax.tree.map(lambda rows, i=i: rows[i], outputs) for i in (0, 1))
    loss = (1 - arm.lambda_) * plain.loss.mean() + arm.lambda_ * adversarial.loss.mean()
    metrics = {
        "clean_loss": plain.loss.mean(),
        "adversarial_loss": adversarial.loss.mean(),
        "clean_error": (plain.margin > 0).mean(),
        "adversarial_error": (adversarial.margin > 0).mean(),
        "clean_s_c": plain.s_c.mean(),
        "adversarial_s_c": adversarial.s_c.mean(),
        "beta": arm.beta,
        "epsilon": arm.epsilon,
        "lambda": arm.lambda_,
    }
    additions = {"attacked": attacked[0]}
    if plain.h_v is not None:
        additions |= {"h_v": plain.h_v, "attacked_h_v": adversarial.h_v}
    return loss, (metrics, adversarial.s_c, additions)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CmaiState(TrainState):
    """A train state with ARM's.

    Attributes:
        arm: an `ArmState`.
    """

    arm: Any


def make_immunize_step(
    answer: Answer,
    settings: MbatSettings,
    controller: Controller,
    optimizer: optax.GradientTransformation,
    width: int,
    prepare: Prepare = lambda trainable, frozen, batch: batch,
    beside: Loss | None = None,
) -> Step:
    """A jitted step of MBAT: attack, update, and ARM's move by what the attack did to S_c.

    The state given is donated.

    Args:
        answer: the model.
        settings: the inner attack.
        controller: ARM's.
        optimizer: moves ``state.trainable``.
        width: D, of the model's token embeddings.
        prepare: adds to a batch what neither the attack nor the gradient goes through, once a step.
        beside: a loss to add, such as the consistency check's; `mbat_loss` says what more its
            batch has.
    """

    def step(state: CmaiState, frozen: Any, batch: Any) -> tuple[CmaiState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        batch = prepare(state.trainable, frozen, batch)

        def loss(trainable: Any) -> tuple[Array, Any]:
            value, (metrics, s_c, additions) = mbat_loss(
                answer, settings, width, trainable, frozen, batch, key, state.arm
            )
            if beside is not None:
                beside_loss, beside_metrics = beside(trainable, frozen, batch | additions, key)
                value, metrics = value + beside_loss, metrics | beside_metrics
            return value, (metrics, s_c)

        (value, (metrics, s_c)), grads = jax.value_and_grad(loss, has_aux=True)(state.trainable)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        metrics |= {"loss": value, "gradient_norm": optax.tree.norm(grads)}
        return replace(
            state,
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            opt_state=opt_state,
            arm=controller.update(state.arm, s_c),
        ), metrics

    return jax.jit(step, donate_argnums=0)
