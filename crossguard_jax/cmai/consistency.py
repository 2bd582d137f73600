"""CMCV: how well a text fits a picture, from the features of each.

Two kinds answer to one interface, ``check(h_v [B, D_v], h_t [B, D_t]) -> S_c [B]``: projection
heads, whose score is a cosine, and a verifier, whose score is a probability. Both learn from
aligned pairs against misaligned ones by InfoNCE (arXiv 1807.03748, both ways as in CLIP).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from crossguard_jax.cmai.features import TEXT_SOURCES
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, PRNGKeyArray
from crossguard_jax.nn.layers import LayerNorm, Linear
from crossguard_jax.train.step import Metrics

KINDS = ("heads", "verifier")
_NORM_EPSILON = 1e-5
_MAX_SCALE = 100.0  # CLIP's own bound
_FIRST_SCALE = 1 / 0.07

Misaligned = tuple[Array, Bool[Array, "..."]]
"""Logits of pairs, and which of the pairs are misaligned: the others count for nothing."""


@dataclass(frozen=True)
class ConsistencyConfig:
    """What a check is, and what it reads.

    Attributes:
        picture_width: D_v, of h_v.
        text_width: D_t, of h_t.
        kind: ``heads`` or ``verifier``.
        shared_width: d_s, of the space in which both sides meet.
        hidden_width: of each hidden layer.
        picture_layers: hidden states of the picture tower that h_v is made of, by transformers'
            index (as LLaVA's ``vision_feature_layer``).
        text_source: where h_t is from, a name in `features.TEXT_SOURCES`.

    Raises:
        UserError: an unknown kind or source, or a width that is none.
    """

    picture_width: int
    text_width: int
    kind: str = "heads"
    shared_width: int = 128
    hidden_width: int = 256
    picture_layers: tuple[int, ...] = (-2,)
    text_source: str = "clip"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"cmcv.kind {self.kind!r} is none of {', '.join(KINDS)}")
        if self.text_source not in TEXT_SOURCES:
            choices = ", ".join(TEXT_SOURCES)
            raise UserError(f"cmcv.text_source {self.text_source!r} is none of {choices}")
        for name in ("picture_width", "text_width", "shared_width", "hidden_width"):
            if getattr(self, name) < 1:
                raise UserError(f"cmcv.{name} {getattr(self, name)}: a whole number above 0")


class Head(nnx.Module):
    """P: normalization and two dense layers into the shared space."""

    def __init__(self, width: int, config: ConsistencyConfig, key: PRNGKeyArray):
        keys = jax.random.split(key)
        hidden, shared = config.hidden_width, config.shared_width
        # Hidden states of a tower have a few huge dimensions, which would drown the others.
        self.norm = LayerNorm(width, _NORM_EPSILON)
        self.linear_1 = Linear(width, hidden, keys[0], ("embed", "mlp"))
        self.linear_2 = Linear(hidden, shared, keys[1], ("mlp", None))

    def __call__(self, h: Float[Array, "*B D"]) -> Float[Array, "*B width"]:
        h = self.norm(h.astype(jnp.float32))
        return self.linear_2(jax.nn.gelu(self.linear_1(h)))


class Heads(nnx.Module):
    """``S_c = cos(P_v(h_v), P_t(h_t))``, in [-1, 1]."""

    def __init__(self, config: ConsistencyConfig, key: PRNGKeyArray):
        keys = jax.random.split(key)
        self.picture = Head(config.picture_width, config, keys[0])
        self.text = Head(config.text_width, config, keys[1])
        self.log_scale = nnx.Param(jnp.log(jnp.float32(_FIRST_SCALE)), axes=())
        self.config = config

    def see(self, h_v: Float[Array, "*B D_v"]) -> Float[Array, "*B width"]:
        """``P_v(h_v)`` as unit vectors."""
        return _unit(self.picture(h_v))

    def read(self, h_t: Float[Array, "*B D_t"]) -> Float[Array, "*B width"]:
        """``P_t(h_t)`` as unit vectors."""
        return _unit(self.text(h_t))

    def logits(self, v: Array, t: Array) -> Array:
        """What InfoNCE compares, of vectors from `see` and `read`; leading axes broadcast."""
        scale = jnp.minimum(jnp.exp(self.log_scale[...]), _MAX_SCALE)
        return scale * (v * t).sum(axis=-1)

    def __call__(
        self, h_v: Float[Array, "B D_v"], h_t: Float[Array, "B D_t"]
    ) -> Float[Array, " B"]:
        return (self.see(h_v) * self.read(h_t)).sum(axis=-1)


class Verifier(nnx.Module):
    """``S_c = V(h_v, h_t)``: the probability that the pair is aligned, in [0, 1]."""

    def __init__(self, config: ConsistencyConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.picture = Head(config.picture_width, config, keys[0])
        self.text = Head(config.text_width, config, keys[1])
        self.linear_1 = Linear(3 * config.shared_width, config.hidden_width, keys[2], (None, "mlp"))
        self.linear_2 = Linear(config.hidden_width, 1, keys[3], ("mlp", None))
        self.config = config

    def see(self, h_v: Float[Array, "*B D_v"]) -> Float[Array, "*B width"]:
        """The picture's side."""
        return self.picture(h_v)

    def read(self, h_t: Float[Array, "*B D_t"]) -> Float[Array, "*B width"]:
        """The text's side."""
        return self.text(h_t)

    def logits(self, v: Array, t: Array) -> Array:
        """Log odds of being aligned, of vectors from `see` and `read`; leading axes broadcast."""
        v, t = jnp.broadcast_arrays(v, t)
        x = self.linear_1(jnp.concatenate([v, t, v * t], axis=-1))
        return self.linear_2(jax.nn.gelu(x))[..., 0]

    def __call__(
        self, h_v: Float[Array, "B D_v"], h_t: Float[Array, "B D_t"]
    ) -> Float[Array, " B"]:
        return jax.nn.sigmoid(self.logits(self.see(h_v), self.read(h_t)))


Check = Heads | Verifier


def make_check(config: ConsistencyConfig, key: PRNGKeyArray) -> Check:
    """A fresh check of the config's kind."""
    return (Heads if config.kind == "heads" else Verifier)(config, key)


def pair_loss(check: Check, pairs: dict[str, Array]) -> tuple[Float[Array, ""], Metrics]:
    """The loss on a batch of aligned pairs, and figures of it; alone or beside a task's loss.

    InfoNCE asks of each text which picture is its own, and of each picture which text. It leaves
    open a constant of the logits, which a probability needs: a verifier adds the logistic loss of
    aligned pairs against misaligned ones, both sides weighing the same, and so do the kinds of
    misaligned pairs among each other.

    Args:
        check: either kind.
        pairs: ``h_v`` [B, D_v] and ``h_t`` [B, D_t], row i of one aligned with row i of the other.
            Optionally ``wrong_v`` [B, K, D_v] and ``wrong_t`` [B, K, D_t], misaligned partners of
            each row's text and picture; and ``negatives`` [B, B] bool, which texts (rows) and
            pictures (columns) of the batch are misaligned, where not all other pairs are. It
            matters where texts fit many pictures: in the small world, where half of all chance
            pairs are aligned, AUROC is 0.91 without it and 1.00 with it (0.99 with ``wrong_t``
            as the only misaligned pairs). ``aligned`` [B] bool, which rows are pairs at all. And
            ``attacked_v`` [B, D_v], of the same pictures under attack: each is compared with its
            own clean picture alone (logistic loss of the two logits), since among all the others
            its share of InfoNCE is too small to learn from: in the small world AUROC on PGD is
            0.70 so, and 0.54 with it in ``wrong_v`` (one seed, 126 rows).

    Returns:
        The loss in nats, and metrics: ``info_nce``, ``s_c`` (mean of the aligned), ``ranked``
        (share of the misaligned pairs that score below the aligned pair of the same text or
        picture) and, where there are attacked pictures, ``lowered`` (share that score below their
        own clean one).
    """
    v, t = check.see(pairs["h_v"]), check.read(pairs["h_t"])
    b = v.shape[0]
    negatives = ~jnp.eye(b, dtype=bool)
    if "negatives" in pairs:
        negatives &= pairs["negatives"]
    own = check.logits(v, t)
    kinds, per_text, per_picture = _misaligned(check, v, t, pairs, negatives)
    info_nce = (_info_nce(own, per_text) + _info_nce(own, per_picture)) / 2
    count = pairs.get("aligned", jnp.ones(b, bool))

    def mean(x: Array) -> Array:
        return jnp.where(count, x, 0).sum() / jnp.maximum(count.sum(), 1)

    loss, metrics = mean(info_nce), {}
    if "attacked_v" in pairs:
        above = own - check.logits(check.see(pairs["attacked_v"]), t)
        loss = loss + mean(jax.nn.softplus(-above))
        metrics = {"lowered": mean(above > 0)}
    if isinstance(check, Verifier):
        loss = loss + (mean(jax.nn.softplus(-own)) + _misaligned_loss(kinds)) / 2
    ranked = [((x < own[:, None]) & mask, mask) for x, mask in per_text + per_picture]
    below, counted = (sum(part.sum() for part in parts) for parts in zip(*ranked, strict=True))
    return loss, metrics | {
        "info_nce": mean(info_nce),
        "s_c": mean(check(pairs["h_v"], pairs["h_t"])),
        "ranked": below / jnp.maximum(counted, 1),
    }


def _misaligned(
    check: Check, v: Array, t: Array, pairs: dict[str, Array], negatives: Bool[Array, "B B"]
) -> tuple[list[Misaligned], list[Misaligned], list[Misaligned]]:
    """The kinds of misaligned pairs that there are; those of each text; those of each picture."""
    grid = check.logits(v[None], t[:, None])  # text by picture
    kinds = [(grid, negatives)]
    per_text, per_picture = [(grid, negatives)], [(grid.T, negatives.T)]
    if "wrong_v" in pairs:
        per_text.append(_all(check.logits(check.see(pairs["wrong_v"]), t[:, None])))
        kinds.append(per_text[-1])
    if "wrong_t" in pairs:
        per_picture.append(_all(check.logits(v[:, None], check.read(pairs["wrong_t"]))))
        kinds.append(per_picture[-1])
    return kinds, per_text, per_picture


def _info_nce(own: Float[Array, " B"], others: list[Misaligned]) -> Float[Array, " B"]:
    """``-log softmax`` of a row's own logit among those of its misaligned pairs."""
    masked = [jnp.where(mask, logits, -jnp.inf) for logits, mask in others]
    every = jnp.concatenate([own[:, None], *masked], axis=1)
    return jax.nn.logsumexp(every, axis=1) - own


def _misaligned_loss(kinds: list[Misaligned]) -> Float[Array, ""]:
    """Mean over the kinds that there are of the logistic loss of misaligned pairs."""
    total = there = jnp.float32(0.0)
    for logits, mask in kinds:
        losses = jnp.where(mask, jax.nn.softplus(logits), 0.0)
        total = total + losses.sum() / jnp.maximum(mask.sum(), 1)
        there = there + mask.any()
    return total / jnp.maximum(there, 1.0)


def _all(logits: Array) -> Misaligned:
    return logits, jnp.ones(logits.shape, bool)


def _unit(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(axis=-1, keepdims=True), 1e-12))
