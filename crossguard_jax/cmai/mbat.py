"""MBAT: adversarial training across both modalities, in one jitted step with its inner attack.

The inner problem perturbs picture, text embeddings, or both:

- ``seed``: ``max alpha L_task - beta S_c``, as proposed. It lowers S_c, so it makes examples that
  the consistency check catches already.
- ``evasive``: ``max alpha L_task - evasion max(0, tau - S_c)``: wrong while still consistent.
- ``both``: one of them for each row, drawn by the step's key.

The outer problem is ``(1 - lambda) L_task(clean) + lambda L_task(adversarial)``, and may take
another L_task than the inner one: an answer that has lost to a third word is learned from, while an
adversary that may move mass to third words is weak. beta, epsilon, lambda and tau are ARM's
(`cmai.arm`): they change as it trains, and nothing compiles anew.
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
from crossguard_jax.core.typing import Array, Bool, Float, PRNGKeyArray
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

Scores = tuple[Float[Array, " B"], Float[Array, " B"], Bool[Array, " B"]]
"""S_c of the adversarial rows, of the clean ones, and which have a picture."""

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


def draw_evasive(settings: MbatSettings, key: PRNGKeyArray, n: int) -> Bool[Array, " B"]:
    """Which of ``n`` rows meet the evasive adversary; the others meet the seed's.

    Not by a row's place: the mixture is periodic, and a source keeps to its places. And each row
    for itself: half of every batch exactly would be uneven where n is odd, and gain nothing, since
    a source has few rows in a batch.
    """
    share = {"seed": 0.0, "evasive": 1.0, "both": 0.5}[settings.inner]
    return jax.random.bernoulli(key, share, (n,))


def inner_loss(
    settings: MbatSettings, answers: Answers, arm: ArmState, evasive: Bool[Array, " B"]
) -> Float[Array, " B"]:
    """What the adversary raises, a row each; ``evasive`` is of `draw_evasive`."""
    below = settings.evasion * jnp.maximum(arm.tau - answers.s_c, 0.0)
    return settings.alpha * answers.loss - jnp.where(evasive, below, arm.beta * answers.s_c)


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
    """The adversarial inputs of a batch: the last iterate of one try from a random start.

    ``key`` draws the start, and each row's adversary.
    """
    draw_key, climb_key = jax.random.split(key)
    evasive = draw_evasive(settings, draw_key, clean[0].shape[0])
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
        return Outcome(inner_loss(settings, outputs, arm, evasive), outputs.margin)

    start, balls = tuple(clean[i] for i in moved), tuple(parts[i] for i in moved)
    result = joint_pgd(objective, start, climb_key, balls, keep_best=False)
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
    outer: Answer | None = None,
) -> tuple[Float[Array, ""], tuple[Metrics, Scores, dict[str, Array]]]:
    """The outer loss of a batch, with figures, S_c of the rows for ARM, and what a loss beside it
    may add to the batch: ``attacked``, the adversarial pixels; and ``h_v`` and ``attacked_h_v``,
    where the model gives them.

    Args:
        answer: the model, as the attack asks it.
        settings: the inner attack.
        width: D, of the model's token embeddings.
        trainable: what is trained.
        frozen: what is not.
        batch: ``pixels`` [B, C, X, Y] in [0, 1] and ``has_picture`` [B]; ``text_mask`` [B, L],
            which tokens' embeddings may move; and what ``answer`` reads.
        key: of the attack.
        arm: beta, epsilon, lambda, and what the evasive adversary stays above.
        outer: the model with the loss that is lowered, where it is not the one that the attack
            raises.
    """
    clean = (batch["pixels"], jnp.zeros((*batch["text_mask"].shape, width), jnp.float32))
    at = jax.lax.stop_gradient(trainable)
    attacked = perturbed(answer, settings, at, frozen, batch, clean, key, arm)
    both = jax.tree.map(lambda *rows: jnp.stack(rows), clean, attacked)
    outer = outer or answer
    outputs = jax.vmap(lambda inputs: outer(trainable, frozen, batch, inputs))(both)
    plain, adversarial = (jax.tree.map(lambda rows, i=i: rows[i], outputs) for i in (0, 1))
    loss = (1 - arm.lambda_) * plain.loss.mean() + arm.lambda_ * adversarial.loss.mean()
    there = batch["has_picture"]

    def pair_mean(s_c: Array) -> Array:
        """Of the rows with a picture; what the others have, where there are none."""
        return jnp.where(there.any(), s_c.mean(where=there), s_c.mean())

    metrics = {
        "clean_loss": plain.loss.mean(),
        "adversarial_loss": adversarial.loss.mean(),
        "clean_error": (plain.margin > 0).mean(),
        "adversarial_error": (adversarial.margin > 0).mean(),
        "clean_s_c": pair_mean(plain.s_c),
        "adversarial_s_c": pair_mean(adversarial.s_c),
        "tau": arm.tau,
        "tau_c": arm.tau_c,
        "beta": arm.beta,
        "epsilon": arm.epsilon,
        "lambda": arm.lambda_,
    }
    additions = {"attacked": attacked[0]}
    if plain.h_v is not None:
        additions |= {"h_v": plain.h_v, "attacked_h_v": adversarial.h_v}
    return loss, (metrics, (adversarial.s_c, plain.s_c, there), additions)


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
    outer: Answer | None = None,
) -> Step:
    """A jitted step of MBAT: attack, update, and ARM's move by what the attack did to S_c.

    The state given is donated.

    Args:
        answer: the model, as the attack asks it.
        settings: the inner attack.
        controller: ARM's.
        optimizer: moves ``state.trainable``.
        width: D, of the model's token embeddings.
        prepare: adds to a batch what neither the attack nor the gradient goes through, once a step.
        beside: a loss to add, such as the consistency check's; `mbat_loss` says what more its
            batch has.
        outer: as in `mbat_loss`.
    """

    def step(state: CmaiState, frozen: Any, batch: Any) -> tuple[CmaiState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        batch = prepare(state.trainable, frozen, batch)

        def loss(trainable: Any) -> tuple[Array, Any]:
            value, (metrics, scores, additions) = mbat_loss(
                answer, settings, width, trainable, frozen, batch, key, state.arm, outer
            )
            if beside is not None:
                beside_loss, beside_metrics = beside(trainable, frozen, batch | additions, key)
                value, metrics = value + beside_loss, metrics | beside_metrics
            return value, (metrics, scores)

        (value, (metrics, scores)), grads = jax.value_and_grad(loss, has_aux=True)(state.trainable)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        metrics |= {"loss": value, "gradient_norm": optax.tree.norm(grads)}
        return replace(
            state,
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            opt_state=opt_state,
            arm=controller.update(state.arm, *scores),
        ), metrics

    return jax.jit(step, donate_argnums=0)
