"""MBAT: adversarial training across both modalities, in one jitted step with its inner attack.

The inner problem perturbs picture, text embeddings, or both:

- ``seed``: ``max alpha L_task - beta S_c``, as proposed. It lowers S_c, so it makes examples that
  the consistency check catches already.
- ``evasive``: ``max alpha L_task - evasion max(0, tau - S_c)``: wrong while still consistent.
- ``both``: one of them for each row, drawn by the step's key.

A text may also be perturbed as a user could type it (``perturb: edits``): a batch then has edited
texts of each row, made beforehand, of which the adversary takes the worst.

The outer problem is ``(1 - lambda) L_task(clean) + lambda L_task(adversarial)``, and may take
another L_task than the inner one: an answer that has lost to a third word is learned from, while an
adversary that may move mass to third words is weak. With ``outer: trades`` its second term is
``lambda KL(p(clean) || p(adversarial))`` over the answers (TRADES, arXiv 1901.08573; its beta is
``lambda / (1 - lambda)``). beta, epsilon, lambda and tau are ARM's (`cmai.arm`): they change as it
trains, and nothing compiles anew.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from crossguard_jax.attacks.joint import Inputs, Part, draw_start, joint_pgd
from crossguard_jax.attacks.problem import NORMS, Budget, Outcome
from crossguard_jax.attacks.registry import INNER as INNER_ATTACKS
from crossguard_jax.cmai.arm import ArmState
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray
from crossguard_jax.train.step import Metrics

INNER = ("seed", "evasive", "both")
PERTURB = tuple(INNER_ATTACKS)
OUTER = ("task", "trades")
EDITED = "edited_"
"""What the arrays of a row's edited texts are called by, [B, K, ...], before the name of the text's
own ([B, ...])."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """What a model makes of a batch; [B] float32 each.

    Attributes:
        loss: of the task, in nats.
        margin: above 0 the answer is wrong.
        s_c: how well the text fits the picture.
        h_v: what S_c sees of the picture, [B, D_v], where a check learns beside the model.
        log_p: of each answer among the answers, [B, K]; None where there are none.
    """

    loss: Any
    margin: Any
    s_c: Any
    h_v: Any = None
    log_p: Any = None


Answer = Callable[[Any, Any, Any, Inputs], Answers]
"""``answer(trainable, frozen, batch, (pixels [B, C, X, Y] in [0, 1], shift [B, L, D]))``; the shift
is added to the embeddings of the batch's tokens, and the model normalizes the pixels itself."""

Scores = tuple[Float[Array, " B"], Float[Array, " B"], Bool[Array, " B"]]
"""S_c of the adversarial rows, of the clean ones, and which have a picture."""


@dataclass(frozen=True)
class MbatSettings:
    """The inner attack.

    Attributes:
        inner: a name in `INNER`.
        perturb: a name in `PERTURB`.
        alpha: weight of the task's loss.
        evasion: weight of falling below tau, in the evasive problem.
        norm: of the picture's ball; its radius is ARM's epsilon.
        steps: gradient steps, k; of ``edits``, the edited texts of a row. A step of training costs
            about two clean ones (the clean rows and the adversarial ones), and less than one more
            for each of these.
        text_epsilon: L2 radius for each token's embedding, in their units.
        edits: characters edited of a text, at most.
        outer: a name in `OUTER`: what is learned from the adversarial rows, their labels or what
            the model makes of the clean ones.

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
    edits: int = 2
    outer: str = "task"

    def __post_init__(self) -> None:
        for name, choices in (
            ("inner", INNER),
            ("perturb", PERTURB),
            ("norm", NORMS),
            ("outer", OUTER),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"mbat.{name} {getattr(self, name)!r} is none of {', '.join(choices)}"
                )
        for name in ("alpha", "evasion", "text_epsilon"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UserError(f"mbat.{name} {getattr(self, name)!r}: 0 or a positive number")
        for name in ("steps", "edits"):
            if getattr(self, name) < 1:
                raise UserError(f"mbat.{name} {getattr(self, name)}: a whole number above 0")
        if self.perturb in ("text", "both") and not self.text_epsilon:
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
    moved = _attacked(answer, settings, trainable, frozen, batch, clean, key, arm)
    return whole(settings, clean, moved)


def _attacked(
    answer: Answer,
    settings: MbatSettings,
    trainable: Any,
    frozen: Any,
    batch: Any,
    clean: Inputs,
    key: PRNGKeyArray,
    arm: ArmState,
) -> Inputs:
    chances = drawn(settings, batch, clean, key, arm)
    return climbed(answer, settings, trainable, frozen, batch, clean, chances, arm)


def whole(settings: MbatSettings, clean: Inputs, moved: Inputs) -> Inputs:
    """All inputs, given those that are perturbed."""
    if settings.perturb == "edits":
        return clean
    inputs = list(clean)
    for i, x in zip(_MOVED[settings.perturb], moved, strict=True):
        inputs[i] = x
    return tuple(inputs)


def edited(settings: MbatSettings, batch: Any, moved: Inputs) -> dict[str, Array]:
    """The arrays of the texts that the adversary took, [B, ...]; none where it edits none."""
    if settings.perturb != "edits":
        return {}
    (which,) = moved
    texts = {k.removeprefix(EDITED): v for k, v in batch.items() if k.startswith(EDITED)}
    return {name: values[jnp.arange(len(which)), which] for name, values in texts.items()}


_MOVED = {"picture": (0,), "text": (1,), "both": (0, 1), "edits": ()}


def _parts(settings: MbatSettings, batch: Any, arm: ArmState) -> tuple[Part, ...]:
    """What may be done to the inputs that are perturbed."""
    radius, k = jnp.float32(settings.text_epsilon), settings.steps
    embeddings = Budget(radius, "l2", k, low=-math.inf, high=math.inf)
    parts = (
        Part(Budget(arm.epsilon, settings.norm, k)),
        Part(embeddings, batch["text_mask"], per_token=True),
    )
    return tuple(parts[i] for i in _MOVED[settings.perturb])


def drawn(
    settings: MbatSettings, batch: Any, clean: Inputs, key: PRNGKeyArray, arm: ArmState
) -> tuple[Inputs, Bool[Array, " B"]]:
    """All that is random in the attack on a batch, a row each: where the perturbed inputs begin,
    and which rows meet the evasive adversary."""
    draw_key, climb_key = jax.random.split(key)
    evasive = draw_evasive(settings, draw_key, clean[0].shape[0])
    if settings.perturb == "edits":
        return (), evasive
    still = tuple(clean[i] for i in _MOVED[settings.perturb])
    return draw_start(still, climb_key, _parts(settings, batch, arm)), evasive


def climbed(
    answer: Answer,
    settings: MbatSettings,
    trainable: Any,
    frozen: Any,
    batch: Any,
    clean: Inputs,
    chances: tuple[Inputs, Bool[Array, " B"]],
    arm: ArmState,
) -> Inputs:
    """The inputs that are perturbed, of rows for which ``chances`` were drawn; of edits, which
    [B]."""
    start, evasive = chances
    if settings.perturb == "edits":
        return (_worst_edit(answer, settings, trainable, frozen, batch, clean, evasive, arm),)

    def objective(some: Inputs, key: PRNGKeyArray) -> Outcome:
        outputs = answer(trainable, frozen, batch, whole(settings, clean, some))
        return Outcome(inner_loss(settings, outputs, arm, evasive), outputs.margin)

    still = tuple(clean[i] for i in _MOVED[settings.perturb])
    key = jax.random.key(0)  # nothing is left to draw
    balls = _parts(settings, batch, arm)
    result = joint_pgd(objective, still, key, balls, keep_best=False, start=start)
    return jax.lax.stop_gradient(result.x_adv)


def _worst_edit(
    answer: Answer,
    settings: MbatSettings,
    trainable: Any,
    frozen: Any,
    batch: Any,
    clean: Inputs,
    evasive: Bool[Array, " B"],
    arm: ArmState,
) -> Int[Array, " B"]:
    """Of each row's edited texts the one with the greatest inner loss; no gradient is taken."""
    n = next(values.shape[1] for name, values in batch.items() if name.startswith(EDITED))

    def loss(k: Array) -> Array:
        texts = edited(settings, batch, (jnp.full(len(evasive), k),))
        outputs = answer(trainable, frozen, batch | texts, clean)
        return inner_loss(settings, outputs, arm, evasive)

    return jnp.argmax(jax.lax.map(loss, jnp.arange(n)), axis=0)


def clean_inputs(batch: Any, width: int) -> Inputs:
    """The pixels of a batch, and embeddings that nothing is added to."""
    return batch["pixels"], jnp.zeros((*batch["text_mask"].shape, width), jnp.float32)


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
            which tokens' embeddings may move; and what ``answer`` reads; with edits, of `EDITED`
            texts too.
        key: of the attack.
        arm: beta, epsilon, lambda, and what the evasive adversary stays above.
        outer: the model with the loss that is lowered, where it is not the one that the attack
            raises.
    """
    clean = clean_inputs(batch, width)
    at = jax.lax.stop_gradient(trainable)
    moved = _attacked(answer, settings, at, frozen, batch, clean, key, arm)
    attacked = whole(settings, clean, moved)
    texts = edited(settings, batch, moved)
    pair = answered_twice(outer or answer, trainable, frozen, batch, clean, attacked, texts)
    scores = pair[1].s_c, pair[0].s_c, batch["has_picture"]
    additions = {"attacked": attacked[0], **seen(pair)}
    return mixed(settings, pair, arm), (figures(pair, scores[2], arm), scores, additions)


Pair = tuple[Answers, Answers]
"""What a model makes of the clean rows, and of the adversarial ones."""


def answered_twice(
    outer: Answer,
    trainable: Any,
    frozen: Any,
    batch: Any,
    clean: Inputs,
    attacked: Inputs,
    texts: dict[str, Array],
) -> Pair:
    """Both kinds of rows in one pass; ``texts`` of `edited` stand in for the attacked ones' own."""
    own = {name: batch[name] for name in texts}
    both = jax.tree.map(lambda *rows: jnp.stack(rows), (clean, own), (attacked, texts))

    def one(inputs: tuple[Inputs, dict[str, Array]]) -> Answers:
        return outer(trainable, frozen, batch | inputs[1], inputs[0])

    outputs = jax.vmap(one)(both)
    plain, adversarial = (jax.tree.map(lambda rows, i=i: rows[i], outputs) for i in (0, 1))
    return plain, adversarial


def mixed(settings: MbatSettings, pair: Pair, arm: ArmState) -> Float[Array, ""]:
    """The outer loss, a mean over rows."""
    plain, adversarial = pair
    second = adversarial.loss
    if settings.outer == "trades":
        # Both sides of the divergence learn, as in the paper's own code.
        second = (jnp.exp(plain.log_p) * (plain.log_p - adversarial.log_p)).sum(axis=1)
    return (1 - arm.lambda_) * plain.loss.mean() + arm.lambda_ * second.mean()


def seen(pair: Pair) -> dict[str, Array]:
    """What S_c saw of the pictures, where the model gives it."""
    plain, adversarial = pair
    return {} if plain.h_v is None else {"h_v": plain.h_v, "attacked_h_v": adversarial.h_v}


def figures(pair: Pair, there: Bool[Array, " B"], arm: ArmState) -> Metrics:
    """Metrics of a whole batch, ``there`` of whose rows have a picture."""
    plain, adversarial = pair

    def pair_mean(s_c: Array) -> Array:
        """Of the rows with a picture; what the others have, where there are none."""
        return jnp.where(there.any(), s_c.mean(where=there), s_c.mean())

    return {
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
