"""A step of MBAT: attack, update, and ARM's move by what the attack did to S_c.

A batch may be taken in microbatches, one after the other. What couples its rows is taken whole
nevertheless: what the attack draws, the check's loss (each text is compared with all pictures),
and what ARM learns of S_c.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from crossguard_jax.attacks.joint import Inputs
from crossguard_jax.cmai import mbat
from crossguard_jax.cmai.arm import ArmState, Controller
from crossguard_jax.cmai.mbat import Answer, MbatSettings, Scores
from crossguard_jax.core.errors import check_divides
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray
from crossguard_jax.train.step import Loss, Metrics, Step, TrainState, joined, settled, strided

Prepare = Callable[[Any, Any, Any], Any]
"""``prepare(trainable, frozen, batch) -> batch``."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CmaiState(TrainState):
    """A train state with ARM's.

    Attributes:
        arm: an `ArmState`.
    """

    arm: Any


Gradients = tuple[Any, Metrics, Scores]
"""Of what is trained; figures of the batch, the loss among them; and S_c of its rows."""


@dataclass(frozen=True)
class Immunization:
    """What a step of MBAT is made of.

    Attributes:
        answer: the model, as the attack asks it.
        settings: the inner attack.
        width: D, of the model's token embeddings.
        outer: as in `mbat.mbat_loss`.
        beside: a loss to add, such as the consistency check's; `mbat.mbat_loss` says what more its
            batch has.
    """

    answer: Answer
    settings: MbatSettings
    width: int
    outer: Answer
    beside: Loss | None

    def gradients(
        self, trainable: Any, frozen: Any, batch: Any, key: PRNGKeyArray, arm: ArmState
    ) -> Gradients:
        """Of a batch in one piece."""

        def loss(trainable: Any) -> tuple[Array, Any]:
            value, (metrics, scores, additions) = mbat.mbat_loss(
                *(self.answer, self.settings, self.width, trainable, frozen, batch, key, arm),
                self.outer,
            )
            if self.beside is not None:
                beside_loss, beside_metrics = self.beside(trainable, frozen, batch | additions, key)
                value, metrics = value + beside_loss, metrics | beside_metrics
            return value, (metrics, scores)

        (value, (metrics, scores)), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
        return grads, metrics | {"loss": value}, scores

    def accumulated(
        self, n: int, trainable: Any, frozen: Any, batch: Any, key: PRNGKeyArray, arm: ArmState
    ) -> Gradients:
        """Of a batch in ``n`` microbatches: the same, by the chain rule at what S_c sees.

        A loss beside may look at all rows together. It is differentiated by what it sees of their
        pictures first, and each microbatch then takes its share of that back through the model.
        """
        at = jax.lax.stop_gradient(trainable)
        chances = mbat.drawn(self.settings, batch, mbat.clean_inputs(batch, self.width), key, arm)

        def attack(part: Any) -> tuple[Inputs, dict[str, Array]]:
            rows, chances = part
            clean = mbat.clean_inputs(rows, self.width)
            moved = mbat.climbed(self.answer, self.settings, at, frozen, rows, clean, chances, arm)
            if self.beside is None:
                return moved, {}
            attacked = mbat.whole(self.settings, clean, moved)
            texts = mbat.edited(self.settings, rows, moved)
            pair = mbat.answered_twice(self.outer, at, frozen, rows, clean, attacked, texts)
            return moved, mbat.seen(pair)  # what else the model makes of them is not computed

        micro = strided(batch, n)
        moved, sights = jax.lax.map(attack, (micro, strided(chances, n)))
        attacked, _ = mbat.whole(self.settings, mbat.clean_inputs(batch, 0), joined(moved))
        grads, beside, metrics, pulls = self._beside(
            trainable, frozen, batch | {"attacked": attacked}, joined(sights), key
        )

        def one(total: Any, part: Any) -> tuple[Any, mbat.Pair]:
            rows, moved, pull = part

            def loss(trainable: Any) -> tuple[Float[Array, ""], mbat.Pair]:
                clean = mbat.clean_inputs(rows, self.width)
                attacked = mbat.whole(self.settings, clean, moved)
                texts = mbat.edited(self.settings, rows, moved)
                both = clean, attacked, texts
                pair = mbat.answered_twice(self.outer, trainable, frozen, rows, *both)
                pulled = [jnp.vdot(pull[name], x) for name, x in mbat.seen(pair).items() if pull]
                return mbat.mixed(self.settings, pair, arm) / n + sum(pulled), pair

            (_, pair), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
            pair = tuple(replace(answers, h_v=None) for answers in pair)
            return jax.tree.map(jnp.add, total, grads), pair

        grads, pairs = jax.lax.scan(one, grads, (micro, moved, strided(pulls, n)))
        pair = joined(pairs)
        scores = pair[1].s_c, pair[0].s_c, batch["has_picture"]
        metrics |= mbat.figures(pair, scores[2], arm) | {
            "loss": mbat.mixed(self.settings, pair, arm) + beside
        }
        return grads, metrics, scores

    def _beside(
        self, trainable: Any, frozen: Any, batch: Any, sights: dict[str, Array], key: PRNGKeyArray
    ) -> tuple[Any, Array, Metrics, dict[str, Array]]:
        """The loss beside: its gradient by what is trained, its value, its metrics, and its
        gradient by what it sees of the pictures."""
        if self.beside is None:
            return jax.tree.map(jnp.zeros_like, trainable), jnp.float32(0), {}, {}

        def loss(trainable: Any, sights: dict[str, Array]) -> tuple[Array, Metrics]:
            return self.beside(trainable, frozen, batch | sights, key)

        (value, metrics), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(trainable, sights)
        return grads[0], value, metrics, grads[1]


def make_immunize_step(
    answer: Answer,
    settings: MbatSettings,
    controller: Controller,
    optimizer: optax.GradientTransformation,
    width: int,
    prepare: Prepare = lambda trainable, frozen, batch: batch,
    beside: Loss | None = None,
    outer: Answer | None = None,
    accumulate: int = 1,
    rules: Rules = DEFAULT_RULES,
) -> Step:
    """A jitted step of MBAT.

    The state given is donated.

    Args:
        answer: the model, as the attack asks it.
        settings: the inner attack.
        controller: ARM's.
        optimizer: moves ``state.trainable``.
        width: D, of the model's token embeddings.
        prepare: adds to a batch what neither the attack nor the gradient goes through, once a step.
        beside: a loss to add, such as the consistency check's; `mbat.mbat_loss` says what more its
            batch has.
        outer: as in `mbat.mbat_loss`.
        accumulate: microbatches a step is split into, one after the other; draws, gradient and
            figures are those of the whole batch.
        rules: the table that the state was placed by.

    Raises:
        UserError: (when called) the batch does not split evenly.
    """
    made = Immunization(answer, settings, width, outer or answer, beside)

    def step(state: CmaiState, frozen: Any, batch: Any) -> tuple[CmaiState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        batch = prepare(state.trainable, frozen, batch)
        n = len(batch["pixels"])
        check_divides("optim.accumulate", accumulate, "the batch", n)
        if accumulate == 1:
            outputs = made.gradients(state.trainable, frozen, batch, key, state.arm)
        else:
            outputs = made.accumulated(accumulate, state.trainable, frozen, batch, key, state.arm)
        grads, metrics, scores = outputs
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        state = replace(
            state,
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            opt_state=opt_state,
            arm=controller.update(state.arm, *scores),
        )
        return settled(state, rules), metrics | {"gradient_norm": optax.tree.norm(grads)}

    return jax.jit(step, donate_argnums=0)
