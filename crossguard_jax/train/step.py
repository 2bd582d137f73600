"""The train state, and how a loss becomes a jitted step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crossguard_jax.core.errors import check_divides
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules, mesh_of, partition_spec
from crossguard_jax.core.typing import Array

Metrics = dict[str, Array]
Loss = Callable[..., tuple[Array, Metrics]]
"""``loss(trainable, frozen, batch, key) -> (mean loss of the batch, metrics of the batch)``."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a step changes, and so everything a checkpoint holds beside the data's place.

    Attributes:
        step: optimizer steps done, int32 (the fields' types are open, since shapes and shardings
            of a state are states too).
        trainable: what the optimizer moves (an adapter, or a whole model).
        opt_state: the optimizer's moments, for ``trainable`` alone.
        key: raw data of the run's random key; step ``n`` uses ``fold_in(key, n)``.
    """

    step: Any
    trainable: Any
    opt_state: Any
    key: Any


Step = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]
"""``step(state, frozen, batch) -> (state, metrics)``; the state given is donated."""


def init_state(
    trainable: Any,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
) -> TrainState:
    """A state at step 0, on the mesh: the moments are sharded as what they belong to.

    ``trainable`` is copied, so that donating the state leaves the caller's arrays alone.
    """

    def make(trainable: Any) -> TrainState:
        return fresh_state(trainable, optimizer, seed)

    if mesh is None:
        return jax.jit(make)(trainable)
    return jax.jit(make, out_shardings=state_shardings(make, trainable, mesh, rules))(trainable)


def fresh_state(trainable: Any, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """`init_state`, to be traced."""
    trainable = jax.tree.map(jnp.copy, trainable)
    key = jax.random.key_data(jax.random.key(seed))
    return TrainState(jnp.int32(0), trainable, optimizer.init(trainable), key)


def state_shardings(make: Callable[[Any], Any], trainable: Any, mesh: Mesh, rules: Rules) -> Any:
    """Shardings of ``make(trainable)``: by logical axes where there are any, whole elsewhere."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        spec = partition_spec(leaf.get_metadata("axes"), leaf.shape, mesh, rules)
        return leaf.replace(NamedSharding(mesh, spec))

    abstract = jax.eval_shape(make, trainable)
    return jax.tree.map(one, abstract, is_leaf=lambda x: isinstance(x, nnx.Variable))


def settled(state: Any, rules: Rules = DEFAULT_RULES) -> Any:
    """What a step returns, pinned to where `state_shardings` puts it, to be traced.

    Left alone, the partitioner spreads some of it further, and the second step, given that,
    would be another program.
    """

    def one(leaf: Any) -> Any:
        variable = isinstance(leaf, nnx.Variable)
        value = leaf.get_value() if variable else leaf
        if (mesh := mesh_of(value)) is None:
            return leaf
        spec = PartitionSpec()
        if variable:
            spec = partition_spec(leaf.get_metadata("axes"), leaf.shape, mesh, rules)
        value = jax.lax.with_sharding_constraint(value, NamedSharding(mesh, spec))
        return leaf.replace(value) if variable else value

    return jax.tree.map(one, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


Split = Callable[[Any, int], Any]
"""``split(batch, n) -> batch`` of n microbatches, stacked, to be traced."""


def strided(batch: Any, n: int) -> Any:
    """A `Split` of arrays that are all rows; each part keeps the batch's own sharding over
    devices."""
    return jax.tree.map(lambda x: x.reshape(len(x) // n, n, *x.shape[1:]).swapaxes(0, 1), batch)


def joined(parts: Any) -> Any:
    """Microbatches as `strided` makes them, in one batch again."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    split: Split = strided,
    schedule: Callable[[Array], Array] | None = None,
    rules: Rules = DEFAULT_RULES,
) -> Step:
    """A jitted optimizer step on ``loss``.

    Args:
        loss: a mean over the batch's leading axis.
        optimizer: moves ``state.trainable``.
        accumulate: microbatches a step is split into, one after the other. As all are equally
            large, the mean of their gradients is the gradient of the whole batch.
        split: how.
        schedule: a number by the step, which the loss takes as its last argument.
        rules: the table that the state was placed by.

    Raises:
        UserError: (when called) the batch does not split evenly.
    """

    def gradient(*args: Any) -> tuple[Any, Metrics]:
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(*args)
        return grads, {"loss": value, **metrics}

    def gradients(state: TrainState, frozen: Any, batch: Any, key: Array) -> tuple[Any, Metrics]:
        scheduled = () if schedule is None else (schedule(state.step),)
        if accumulate == 1:
            return gradient(state.trainable, frozen, batch, key, *scheduled)
        n = jax.tree.leaves(batch)[0].shape[0]
        check_divides("optim.accumulate", accumulate, "the batch", n)
        micro = split(batch, accumulate)

        def one(total: Any, part: Any) -> tuple[Any, None]:
            micro_batch, micro_key = part
            outputs = gradient(state.trainable, frozen, micro_batch, micro_key, *scheduled)
            return jax.tree.map(jnp.add, total, outputs), None

        keys = jax.random.split(key, accumulate)
        first = jax.tree.map(lambda x: x[0], (micro, keys))
        shapes = jax.eval_shape(gradient, state.trainable, frozen, *first, *scheduled)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(one, zero, (micro, keys))
        return jax.tree.map(lambda x: x / accumulate, total)

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        grads, metrics = gradients(state, frozen, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        state = replace(
            state,
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            opt_state=opt_state,
        )
        return settled(state, rules), metrics

    return jax.jit(step, donate_argnums=0)
