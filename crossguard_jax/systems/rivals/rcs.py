"""RCS (arXiv 2512.12069): is a row's inner state nearer to unsafe rows' states than to safe ones'?

The state of a middle layer at the prompt's last token goes through a projection that is trained by
contrast: rows of one data set together, safe and unsafe centroids apart. In that space ``mcd`` is
the least Mahalanobis distance to a safe data set less the least to an unsafe one, ``kcd`` the
distance to the k-th nearest safe row less that to the k-th nearest unsafe one.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crossguard_jax.attacks.suite import digest
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray
from crossguard_jax.guard.encoding import Pictures
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.identity import guard_identity
from crossguard_jax.nn import lora
from crossguard_jax.nn.llava import last_positions
from crossguard_jax.systems.rivals.detector import Cut, Detector, readable

RULES = ("mcd", "kcd")
WIDTHS = (512, 256, 256)
"""Of the projection's three layers."""
NEIGHBOURS = 40
EPOCHS, BATCH, RATE = 100, 64, 1e-3
APART, CENTROIDS, WEIGHT = 1.0, 2.0, 5.0
"""Margins of the two parts of the loss, and the second's weight."""
_LEAST = 2  # rows of a data set that has a covariance
_EPSILON = 1e-5

Projection = Mapping[str, Any]
"""``kernel_i``, ``bias_i``, and of what each layer gives ``mean_i``, ``variance_i``, ``scale_i``,
``shift_i``: a batch normalization with what training saw."""


class Rcs(Detector):
    """See the module.

    Args:
        guard: the model, in its ordinary chat prompt.
        layer: whose states are read; the first is 0.
        projection: trained on states of that layer.
        rule: a name in `RULES`.
        reference: what the rule compares with (`reference_of`).
        cut: where the figure begins to be unsafe.

    Raises:
        UserError: another rule, or a layer that the model does not have.
    """

    kind = "rcs"

    def __init__(
        self,
        guard: Guard,
        layer: int,
        projection: Projection,
        rule: str,
        reference: Mapping[str, np.ndarray],
        cut: Cut,
    ):
        super().__init__(guard.settings, cut, guard.folder)
        self.mesh = guard.mesh
        self.guard, self.layer, self.rule = guard, layer, check_rule(rule)
        self.projection, self.reference = projection, reference

    def figures(
        self, images: Sequence[Pictures], texts: Sequence[object], batch_size: int = 16
    ) -> list[float | UserError]:
        """The rule's figures."""
        rows = states(self.guard, self.layer, images, texts, batch_size)
        return [
            row
            if isinstance(row, UserError)
            else float(figure(self.rule, self.reference, project(self.projection, row)).max())
            for row in rows
        ]

    def identity(self) -> dict[str, Any]:
        """As of `Detector`."""
        own = {"kind": self.kind, "layer": self.layer, "rule": self.rule}
        numbers = digest({"projection": dict(self.projection), "reference": dict(self.reference)})
        return guard_identity(self.guard) | own | {"numbers": numbers}


def check_rule(rule: str) -> str:
    """The rule.

    Raises:
        UserError: it is none.
    """
    if rule not in RULES:
        raise UserError(f"--rule {rule!r} is none of {', '.join(RULES)}")
    return rule


def states(
    guard: Guard,
    layer: int,
    images: Sequence[Pictures],
    texts: Sequence[object],
    batch_size: int = 16,
) -> list[Float[np.ndarray, "W D"] | UserError]:
    """A layer's state at the last token of each window of each row, float32.

    Raises:
        UserError: the model does not have the layer.
    """
    total = guard.model.config.text.num_hidden_layers
    if not 0 <= layer < total:
        raise UserError(f"--layer {layer}: the model has 0 to {total - 1}")
    graphdef, *parts = guard.parts

    def read(batch: dict[str, Any]) -> Array:
        return _state(graphdef, layer, tuple(parts), batch)

    return guard.read_each(images, texts, read, batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _state(graphdef: Any, layer: int, parts: Any, batch: dict[str, Array]) -> Float[Array, "B D"]:
    model = lora.merge(graphdef, *parts)
    mask = batch["attention_mask"].astype(bool)
    x = model.embed(batch["input_ids"], batch.get("pixel_values"), 1.0, batch.get("picture_index"))
    outputs = model.language_model.layer_states(x, mask, last_positions(mask))
    return outputs[layer].astype(jnp.float32)


def project(projection: Projection, rows: Float[np.ndarray, "B D"]) -> Float[np.ndarray, "B E"]:
    """States in the trained space, float64."""
    x = rows.astype(np.float64)
    for i in range(len(WIDTHS)):
        x = x @ np.float64(projection[f"kernel_{i}"]) + np.float64(projection[f"bias_{i}"])
        deviation = np.sqrt(np.float64(projection[f"variance_{i}"]) + _EPSILON)
        x = (x - np.float64(projection[f"mean_{i}"])) / deviation
        x = x * np.float64(projection[f"scale_{i}"]) + np.float64(projection[f"shift_{i}"])
        x = x if i == len(WIDTHS) - 1 else np.maximum(x, 0)
    return x


def train_projection(
    rows: Float[np.ndarray, "N D"],
    sets: Int[np.ndarray, " N"],
    unsafe: Bool[np.ndarray, " N"],
    seed: int = 0,
    epochs: int = EPOCHS,
) -> dict[str, np.ndarray]:
    """Trains the projection (AdamW, cosine to a twentieth, drop-out 0.3).

    Args:
        rows: states.
        sets: which data set each is of.
        unsafe: their labels.
        seed: of the start, the order and the drop-out.
        epochs: times through the rows.
    """
    key = jax.random.key(seed)
    start_key, key = jax.random.split(key)
    weights, seen = _start(start_key, rows.shape[1])
    size = min(BATCH, len(rows))
    per_epoch = max(len(rows) // size, 1)
    steps = epochs * per_epoch
    adam = optax.adamw(optax.cosine_decay_schedule(RATE, steps, alpha=0.05), weight_decay=1e-4)
    data = jnp.asarray(rows, jnp.float32), jnp.asarray(sets), jnp.asarray(unsafe)

    @jax.jit
    def epoch(carry: Any, key: PRNGKeyArray) -> Any:
        order = jax.random.permutation(key, len(rows))[: per_epoch * size].reshape(-1, size)
        keys = jax.random.split(key, per_epoch)

        def step(carry: Any, now: Any) -> tuple[Any, Array]:
            (weights, seen, opt_state), (places, key) = carry, now
            batch = [x[places] for x in data]

            def loss(weights: Any) -> tuple[Array, Any]:
                z, moments = _forward(weights, batch[0], key)
                return contrast(z, batch[1], batch[2]), moments

            (value, moments), grads = jax.value_and_grad(loss, has_aux=True)(weights)
            updates, opt_state = adam.update(grads, opt_state, weights)
            seen = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, seen, moments)
            return (optax.apply_updates(weights, updates), seen, opt_state), value

        return jax.lax.scan(step, carry, (order, keys))[0]

    carry = weights, seen, adam.init(weights)
    for one in jax.random.split(key, epochs):
        carry = epoch(carry, one)
    return {name: np.asarray(value) for name, value in (carry[0] | carry[1]).items()}


def _start(key: PRNGKeyArray, width: int) -> tuple[dict[str, Array], dict[str, Array]]:
    weights: dict[str, Array] = {}
    seen: dict[str, Array] = {}
    keys = jax.random.split(key, len(WIDTHS))
    for i, n_out in enumerate(WIDTHS):
        reach = (6 / (width + n_out)) ** 0.5  # Glorot
        weights[f"kernel_{i}"] = reach * jax.random.uniform(keys[i], (width, n_out), minval=-1)
        weights |= {f"bias_{i}": jnp.zeros(n_out), f"shift_{i}": jnp.zeros(n_out)}
        weights[f"scale_{i}"] = jnp.ones(n_out)
        seen |= {f"mean_{i}": jnp.zeros(n_out), f"variance_{i}": jnp.ones(n_out)}
        width = n_out
    return weights, seen


def _forward(weights: Any, x: Array, key: PRNGKeyArray) -> tuple[Array, dict[str, Array]]:
    """In training: normalized by the batch's own moments, which come with it."""
    moments: dict[str, Array] = {}
    keys = jax.random.split(key, len(WIDTHS))
    for i in range(len(WIDTHS)):
        x = x @ weights[f"kernel_{i}"] + weights[f"bias_{i}"]
        mean, variance = x.mean(axis=0), x.var(axis=0)
        moments |= {f"mean_{i}": mean, f"variance_{i}": variance}
        x = (x - mean) * jax.lax.rsqrt(variance + _EPSILON)
        x = x * weights[f"scale_{i}"] + weights[f"shift_{i}"]
        if i < len(WIDTHS) - 1:
            kept = jax.random.bernoulli(keys[i], 0.7, x.shape)
            x = jnp.where(kept, jax.nn.relu(x) / 0.7, 0.0)
    return x, moments


def contrast(
    z: Float[Array, "B E"], sets: Int[Array, " B"], unsafe: Bool[Array, " B"]
) -> Float[Array, ""]:
    """Rows of one data set near each other and `APART` from others; safe and unsafe centroids
    `CENTROIDS` apart, and each side near its own."""
    z = z / jnp.sqrt((z * z).sum(axis=1, keepdims=True) + 1e-12)
    squares = ((z[:, None] - z[None]) ** 2).sum(axis=-1)
    distances = jnp.sqrt(squares + 1e-12)
    others = ~jnp.eye(len(z), dtype=bool)
    same = (sets[:, None] == sets) & others
    apart = (sets[:, None] != sets) & others
    by_set = _mean(distances, same) + _mean(jax.nn.relu(APART - distances), apart)

    def side(flags: Array) -> tuple[Array, Array]:
        weight = flags / jnp.maximum(flags.sum(), 1)
        centre = weight @ z
        return centre, weight @ jnp.sqrt(((z - centre) ** 2).sum(axis=1) + 1e-12)

    (safe, safe_spread), (harm, harm_spread) = side(~unsafe), side(unsafe)
    between = jnp.sqrt(((safe - harm) ** 2).sum() + 1e-12)
    by_label = jax.nn.relu(CENTROIDS - between) + safe_spread + harm_spread
    both = unsafe.any() & ~unsafe.all()
    return by_set + WEIGHT * jnp.where(both, by_label, 0.0)


def _mean(values: Array, where: Array) -> Array:
    return (values * where).sum() / jnp.maximum(where.sum(), 1)


def reference_of(
    rule: str,
    z: Float[np.ndarray, "N E"],
    sets: Int[np.ndarray, " N"],
    unsafe: Bool[np.ndarray, " N"],
    k: int = NEIGHBOURS,
) -> dict[str, np.ndarray]:
    """What a rule compares with, of projected rows.

    Args:
        rule: a name in `RULES`.
        z: the rows.
        sets: which data set each is of; its safe and its unsafe rows are clusters of their own.
        unsafe: their labels.
        k: of ``kcd``.

    Raises:
        UserError: rows of one label alone, or too few.
    """
    if unsafe.all() or not unsafe.any():
        raise UserError("rcs: compares with safe and unsafe rows; give both")
    if rule == "kcd":
        unit = _unit(z)
        return {"safe": unit[~unsafe], "unsafe": unit[unsafe], "k": np.array([k])}
    means, inverses, labels = [], [], []
    for label in (False, True):
        for one in np.unique(sets):
            rows = z[(sets == one) & (unsafe == label)]
            if len(rows) >= _LEAST:
                means.append(rows.mean(axis=0))
                inverses.append(np.linalg.inv(shrunk_covariance(rows)))
                labels.append(label)
    if len(set(labels)) < 2:
        raise UserError(f"rcs: no data set with {_LEAST} rows of each label; give more rows")
    return {
        "means": np.stack(means),
        "inverses": np.stack(inverses),
        "unsafe": np.array(labels),
    }


def shrunk_covariance(rows: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "E E"]:
    """The covariance, drawn to a multiple of the identity by the Rao-Blackwell Ledoit-Wolf weight
    (Chen et al. 2010), so that it has an inverse."""
    n, d = rows.shape
    sample = np.cov(rows.T)
    trace, square = np.trace(sample), (sample**2).sum()
    below = (n + 2) * (square - trace**2 / d)
    weight = min(1.0, ((n - 2) / n * square + trace**2) / below) if below > 0 else 0.0
    return (1 - weight) * sample + weight * (trace / d + 1e-12) * np.eye(d)


def figure(
    rule: str, reference: Mapping[str, np.ndarray], z: Float[np.ndarray, "B E"]
) -> Float[np.ndarray, " B"]:
    """Distance to what is safe less distance to what is not."""
    if rule == "kcd":
        unit = _unit(z)
        safe, harm = (_kth(unit, reference[side], int(reference["k"][0])) for side in _SIDES)
        return safe - harm
    apart = z[:, None] - reference["means"]
    squares = np.einsum("bce,cef,bcf->bc", apart, reference["inverses"], apart)
    distances = np.sqrt(np.maximum(squares, 0))
    harm = reference["unsafe"]
    return distances[:, ~harm].min(axis=1) - distances[:, harm].min(axis=1)


_SIDES = ("safe", "unsafe")


def _unit(z: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(z, axis=1, keepdims=True)
    return z / np.where(lengths == 0, 1, lengths)


def _kth(z: np.ndarray, reference: np.ndarray, k: int) -> np.ndarray:
    squares = (z**2).sum(1)[:, None] + (reference**2).sum(1) - 2 * z @ reference.T
    place = min(k, len(reference)) - 1
    return np.sqrt(np.maximum(np.partition(squares, place, axis=1)[:, place], 0))


def fit(
    guard: Guard,
    rows: tuple[Sequence[Pictures], Sequence[str]],
    sets: Int[np.ndarray, " B"],
    unsafe: Bool[np.ndarray, " B"],
    held: Int[np.ndarray, " N"],
    *,
    layer: int | None = None,
    rule: str = "mcd",
    fpr: float = 0.05,
    seed: int = 0,
    batch_size: int = 16,
) -> Rcs:
    """Trains on some rows, and chooses the cut on the benign ones among others.

    Args:
        guard: the model.
        rows: pictures and texts.
        sets: which data set each is of.
        unsafe: their labels.
        held: positions of the rows that the cut is chosen on.
        layer: whose states are read; the middle one by default.
        rule: a name in `RULES`.
        fpr: of the cut.
        seed: of the projection's training.
        batch_size: rows to a forward pass.

    Raises:
        UserError: a row that cannot be read, or whatever the parts refuse.
    """
    check_rule(rule)
    layer = guard.model.config.text.num_hidden_layers // 2 if layer is None else layer
    # A long text's windows are rows of its label; the first has to do here.
    every = np.stack([row[0] for row in readable(states(guard, layer, *rows, batch_size))])
    others = np.setdiff1d(np.arange(len(unsafe)), held)
    projection = train_projection(every[others], sets[others], unsafe[others], seed)
    z = project(projection, every)
    reference = reference_of(rule, z[others], sets[others], unsafe[others])
    of_benign = [i for i in held if not unsafe[i]]
    cut = Cut.choose(figure(rule, reference, z[of_benign]), fpr)
    return Rcs(guard, layer, projection, rule, reference, cut)
