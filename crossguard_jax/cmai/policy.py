"""ARM at inference: what is done with a request, by how well its text fits its picture.

A policy cuts the scores into intervals and gives each one branch: ``reject`` (no answer),
``smooth`` (the mean answer to noisy copies), ``robust`` (adapters blended toward the robust
regime), ``flag`` (the plain answer, and a place in the queue for human review, which is whoever
calls it to give), or, above all
cuts, ``accept`` (the plain answer). It knows no model: it is handed one to ask.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.cmai.noise import Inputs, noisy
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, Int, Shaped

Predict = Callable[[Any, Inputs, Array], Array]
"""``predict(state, inputs [N, ...], scale [N]) -> p [N, ...]``, under jit. ``scale`` weighs the
robust adapter of each row (`nn.lora.LoraScale`): 0 is the model as it is, 1 the robust regime. One
function for all calls: another object compiles anew, and so weights belong into ``state``."""

OPTIONS = {
    "accept": (),
    "reject": (),
    "smooth": ("n", "sigma", "vote", "scales"),
    "robust": ("full",),
    "flag": (),
}
"""What can be done, and what of it a config may set."""


@dataclass(frozen=True)
class Branch:
    """What is done with the scores of one interval.

    Attributes:
        below: the interval's upper end, which it does not contain; a number.
        do: a name in `OPTIONS`.
        n: ``smooth``: noisy copies.
        sigma: ``smooth``: their standard deviation, in units of the pictures.
        vote: ``smooth``: average ``p >= vote`` in place of p; what a certificate speaks of is this
            average's majority. Negative averages p itself.
        scales: ``smooth``: weights of the robust adapter, taken in turn: several make an ensemble.
        full: ``robust``: at this score and under it the robust adapter is fully on; up to ``below``
            it fades out in proportion. Infinite: fully on in the whole interval.
    """

    below: Any
    do: str
    n: int = 8
    sigma: float = 0.02
    vote: float = -1.0
    scales: tuple[float, ...] = (0.0,)
    full: float = math.inf

    @property
    def passes(self) -> int:
        """Forward passes of the model that a row costs."""
        return {"reject": 0, "smooth": self.n}.get(self.do, 1)

    def scale(self, scores: Float[Array, " B"]) -> Float[Array, " B"]:
        """Weights of the robust adapter in a ``robust`` branch."""
        if self.full == math.inf:
            return jnp.ones_like(scores)
        fading = (self.below - scores) / (self.below - self.full)
        return jnp.where(jnp.isnan(scores), 1.0, jnp.clip(fading, 0.0, 1.0))


@dataclass(frozen=True)
class Policy:
    """One branch an interval, from the lowest scores up; the last one accepts."""

    branches: tuple[Branch, ...] = (Branch(math.inf, "accept"),)

    @classmethod
    def from_config(cls, config: Any) -> "Policy":
        """From ``{"branches": [{"below": 0.1, "do": "reject"}, {"below": 0.3, "do": ..}, ..]}``.

        Their order does not matter. No branches at all accept everything.

        Raises:
            UserError: an unknown action or option, a number that cannot be, or two branches that
                end at one score.
        """
        branches = sorted((_branch(dict(b)) for b in config["branches"]), key=lambda b: b.below)
        for low, high in zip(branches, branches[1:], strict=False):
            if low.below == high.below:
                raise UserError(f"arm.branches: two of them end at {low.below:g}; leave one out")
        bottoms = [-math.inf, *(branch.below for branch in branches)]
        for bottom, high in zip(bottoms, branches, strict=False):
            if high.full != math.inf and not bottom <= high.full < high.below:
                raise UserError(
                    f"arm.branches: full {high.full:g} lies outside its branch, "
                    f"{bottom:g} to {high.below:g}"
                )
        return cls((*branches, Branch(math.inf, "accept")))

    @property
    def cuts(self) -> Float[Array, " C"]:
        """Where the intervals meet, ascending, float32."""
        return jnp.array([branch.below for branch in self.branches[:-1]], jnp.float32)

    def at(self, cuts: Float[Array, " C"]) -> "Policy":
        """The same with other cuts, to be traced: policies that differ in them compile once."""
        moved = [replace(b, below=cuts[i]) for i, b in enumerate(self.branches[:-1])]
        return Policy((*moved, self.branches[-1]))

    def decide(self, scores: Float[Array, " B"]) -> Int[Array, " B"]:
        """The branch of each score, by index; a score that is no number takes the lowest."""
        cuts = self.cuts
        branches = jnp.searchsorted(cuts, scores.astype(jnp.float32), side="right")
        return jnp.where(jnp.isnan(scores), 0, branches).astype(jnp.int32)

    @property
    def plain(self) -> bool:
        """Whether all that it answers, the model answers as it is."""
        return not any(branch.do in ("smooth", "robust") for branch in self.branches)

    @property
    def rejects(self) -> bool:
        """Whether there is anything that it does not answer."""
        return any(branch.do == "reject" for branch in self.branches)

    def caught(self, scores: Float[Array, " B"]) -> Float[Array, " B"]:
        """How far inside an interval of rejection each score is; above 0 it is rejected."""
        depth, bottom = jnp.full(scores.shape, -jnp.inf), -math.inf
        for branch in self.branches:
            if branch.do == "reject":
                inside = jnp.minimum(branch.below - scores, scores - bottom)
                depth = jnp.maximum(depth, inside)
            bottom = branch.below
        return depth

    def rows(self, branches: Int[np.ndarray, " B"], do: str) -> Bool[np.ndarray, " B"]:
        """Which rows went a way of this name."""
        return np.array([branch.do == do for branch in self.branches])[branches]


@dataclass(frozen=True)
class Decisions:
    """What came of a batch, one entry a row.

    Attributes:
        branches: index into ``policy.branches``.
        answers: the model's, [B, ...]; NaN where rejected.
        rejected: which got no answer.
        flagged: which a person is to look at.
        passes: forward passes of the model that each row cost, the one for its score not counted.
    """

    branches: Int[np.ndarray, " B"]
    answers: Float[np.ndarray, "B *K"]
    rejected: Bool[np.ndarray, " B"]
    flagged: Bool[np.ndarray, " B"]
    passes: Int[np.ndarray, " B"]


def apply(
    policy: Policy,
    predict: Predict,
    state: Any,
    inputs: Inputs,
    scores: Float[Array | np.ndarray, " B"],
    keys: Shaped[Array, " B"],
) -> Decisions:
    """Decides and answers a batch; each row takes its own branch's passes and no other's.

    Args:
        policy: what to do.
        predict: the model.
        state: handed to it.
        inputs: the batch.
        scores: S_c of each row.
        keys: of `noise.row_keys`.
    """
    scores = np.asarray(scores, np.float32)
    branches = np.asarray(policy.decide(jnp.asarray(scores)))
    shape = jax.eval_shape(predict, state, inputs, jax.ShapeDtypeStruct(scores.shape, "float32"))
    answers = np.full(shape.shape, np.nan, np.float32)
    for index, branch in enumerate(policy.branches):
        rows = np.flatnonzero(branches == index)
        if rows.size and branch.do != "reject":
            # Few sizes, so few compilations; the rows that fill up are thrown away.
            filled = np.pad(rows, (0, _bucket(rows.size) - rows.size), mode="edge")
            some = jax.tree.map(lambda x: x[filled], (inputs, jnp.asarray(scores), keys))  # noqa: B023
            answers[rows] = np.asarray(_answers(branch, predict, state, *some))[: rows.size]
    rejected, flagged = (policy.rows(branches, do) for do in ("reject", "flag"))
    passes = np.array([branch.passes for branch in policy.branches])[branches]
    return Decisions(branches, answers, rejected, flagged, passes)


def answer_all(
    policy: Policy,
    predict: Predict,
    state: Any,
    inputs: Inputs,
    scores: Float[Array, " B"],
    keys: Shaped[Array, " B"],
) -> tuple[Int[Array, " B"], Float[Array, "B *K"]]:
    """`apply`'s branches and answers, to be traced and differentiated: what an attack goes through.

    Every row takes every branch's passes, and nothing is queued. A rejected row has the plain
    answer, so that an attack knows what it would be worth to get past.
    """
    branches = policy.decide(scores)
    answers = predict(state, inputs, jnp.zeros_like(scores))
    for index, branch in enumerate(policy.branches):
        if branch.do in ("smooth", "robust"):
            here = (branches == index).reshape(-1, *[1] * (answers.ndim - 1))
            branch_answers = answer(branch, predict, state, inputs, scores, keys)
            answers = jnp.where(here, branch_answers, answers)
    return branches, answers


def answer(
    branch: Branch,
    predict: Predict,
    state: Any,
    inputs: Inputs,
    scores: Float[Array, " B"],
    keys: Shaped[Array, " B"],
) -> Float[Array, "B *K"]:
    """What one branch, not of rejection, answers to every row."""
    if branch.do == "robust":
        return predict(state, inputs, branch.scale(scores))
    if branch.do != "smooth":
        return predict(state, inputs, jnp.zeros_like(scores))
    scales = jnp.resize(jnp.array(branch.scales, jnp.float32), (branch.n,))

    def one(total: Array, sample: Any) -> tuple[Array, None]:
        number, scale = sample
        copies = noisy(inputs, keys, number[None], branch.sigma)
        p = predict(state, copies, jnp.full(scores.shape, scale))
        if branch.vote >= 0:  # what is no number stays none, and is no vote for either side
            p = jnp.where(jnp.isnan(p), p, (p >= branch.vote).astype(p.dtype))
        return total + p, None

    p = jax.eval_shape(predict, state, inputs, scores)
    total, _ = jax.lax.scan(one, jnp.zeros(p.shape, p.dtype), (jnp.arange(branch.n), scales))
    return total / branch.n


_answers = functools.partial(jax.jit, static_argnums=(0, 1))(answer)


def _bucket(n: int) -> int:
    """The number of rows that ``n`` are computed as: a power of two."""
    return 1 << (n - 1).bit_length()


def _branch(config: Mapping[str, Any]) -> Branch:
    do = config.get("do")
    if do not in OPTIONS or do == "accept":
        actions = ", ".join(name for name in OPTIONS if name != "accept")
        raise UserError(f"arm.branches: do {do!r} is none of {actions}")
    fields = {"below", "do", *OPTIONS[do]}
    if "below" not in config or set(config) - fields:
        wrong = ", ".join(sorted(set(config) - fields)) or "no below"
        raise UserError(f"arm.branches: {do}: {wrong}; it has {', '.join(sorted(fields))}")
    numbers = {k: float(config[k]) for k in ("below", "sigma", "vote", "full") if k in config}
    branch = Branch(
        do=do,
        n=int(config.get("n", Branch.n)),
        scales=tuple(float(s) for s in config.get("scales", Branch.scales)),
        **numbers,
    )
    if math.isnan(branch.below) or math.isinf(branch.below):
        raise UserError(f"arm.branches: {do}: below {branch.below!r}: a number")
    if branch.n < 1 or not 0.0 <= branch.sigma < math.inf or not branch.scales:
        raise UserError(f"arm.branches: {do}: n from 1, sigma from 0, at least one of scales")
    return branch


def as_config(branch: Branch) -> dict[str, Any]:
    """What `Policy.from_config` makes this branch from."""
    options = {name: getattr(branch, name) for name in OPTIONS[branch.do]}
    return {"below": branch.below, "do": branch.do, **options}


def reason(branch: Branch, score: float) -> str:
    """Why a row of this score went there, for a person."""
    return f"S_c {score:.4g} is below {branch.below:g}" if score == score else "S_c is no number"
