"""What each branch of ARM's policy costs: who takes it, who gets no answer, passes and time."""

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.cmai import policy as policies
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.noise import row_keys
from crossguard_jax.cmai.policy import Branch, Policy
from crossguard_jax.core import metrics
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.core.timing import interleave
from crossguard_jax.core.typing import Float
from crossguard_jax.evals.benchmarks import Figures
from crossguard_jax.evals.robustness.probe import Probe, s_c
from crossguard_jax.io.progress import rounds
from crossguard_jax.report.tables import Cell, Metric, Table, Unit

RUNS = 5
"""Times that a branch is timed."""

_answer = functools.partial(jax.jit, static_argnums=(0, 1))(policies.answer)


def branch_name(policy: Policy, index: int) -> str:
    """A branch in a dotted name."""
    return f"arm.{index}_{policy.branches[index].do}"


def branch_figures(policy: Policy, scores: Mapping[str, Float[np.ndarray, " _"]]) -> Figures:
    """What becomes of rows, by ``arm.0_reject.share.clean`` and so on; ``arm.all`` is the whole.

    Args:
        policy: ARM's.
        scores: S_c by what was done to the rows.
    """
    estimates = {}
    for i, branch in enumerate(policy.branches):
        estimates[f"{branch_name(policy, i)}.abstention"] = Estimate.exact(branch.do == "reject")
        estimates[f"{branch_name(policy, i)}.passes"] = Estimate.exact(branch.passes)
    cost = np.array([branch.passes for branch in policy.branches], np.float64)
    for what, some in scores.items():
        taken = np.asarray(policy.decide(jnp.asarray(some, jnp.float32)))
        for i in range(len(policy.branches)):
            estimates[f"{branch_name(policy, i)}.share.{what}"] = metrics.proportion(taken == i)
        rejected = metrics.proportion(policy.rows(taken, "reject"))
        estimates[f"arm.all.abstention.{what}"] = rejected
        estimates[f"arm.all.flagged.{what}"] = metrics.proportion(policy.rows(taken, "flag"))
        estimates[f"arm.all.passes.{what}"] = metrics.mean(cost[taken])
    return estimates


def latencies(system: Immunized, probe: Probe, size: int, runs: int = RUNS) -> Figures:
    """What a row costs in time: ``arm.0_reject.latency`` relative to a row that is accepted, the
    check's own pass counted in both, and ``arm.check.latency``, of an accepted row relative to the
    answer alone.

    The median over rounds of a batch through everything; first calls, which compile, do not count.

    Args:
        system: with a check.
        probe: gives the rows.
        size: of the batch.
        runs: rounds.
    """
    here = np.resize(np.arange(len(probe.x)), size)
    inputs = {name: jnp.asarray(value) for name, value in probe.at(here).items()}
    inputs["pixels"] = jnp.asarray(probe.x[here])
    scores = jnp.asarray(probe.s_c[here], jnp.float32)
    keys = row_keys(jax.random.key(0), [str(i) for i in range(size)])

    def check() -> None:
        jax.block_until_ready(s_c(system, system.params, inputs, inputs["pixels"]))

    def answer(branch: Branch) -> None:
        operands = (system.params, inputs, scores, keys)
        jax.block_until_ready(_answer(branch, system.predict, *operands))

    branches = system.policy.branches
    sides: dict[str, Callable[[], None]] = {"check": check}
    for i, branch in enumerate(branches):
        if branch.do != "reject":
            sides[str(i)] = functools.partial(answer, branch)
    measured = interleave(sides, rounds(runs, "branches"))
    timed = {name: side.seconds for name, side in measured.items()}
    with_check, plain = timed["check"], timed[str(len(branches) - 1)]
    estimates = {
        "arm.check.latency": _median((c + a) / a for c, a in zip(with_check, plain, strict=True))
    }
    for i in range(len(branches)):
        own = timed.get(str(i), (0.0,) * runs)
        each = zip(with_check, own, plain, strict=True)
        ratio = _median((c + o) / (c + a) for c, o, a in each)
        estimates[f"{branch_name(system.policy, i)}.latency"] = ratio
    return estimates


def branch_table(name: str, policy: Policy, estimates: Figures, conditions: Iterable[str]) -> Table:
    """A row a branch, from the lowest scores up.

    Args:
        name: what the figures' names begin with.
        policy: ARM's.
        estimates: of `branch_figures` and `latencies`.
        conditions: what was done to the rows.
    """
    columns: dict[str, tuple[str, Unit]] = {}
    for what in conditions:
        n = estimates[f"arm.all.abstention.{what}"].n
        columns[f"share.{what}"] = (f"share of {what} (%), n = {n:,}", "percent")
    columns["abstention"] = ("without answer (%)", "percent")
    columns |= {"passes": ("passes a row", "plain"), "latency": ("latency", "plain")}
    rows: list[tuple[Cell, ...]] = []
    for i, branch in enumerate(policy.branches):
        here = branch_name(policy, i)
        where = f"S_c below {branch.below:.4g}" if i < len(policy.branches) - 1 else "the rest"
        cells = (
            Metric(f"{name}.{here}.{what}", estimates[f"{here}.{what}"], unit)
            for what, (_, unit) in columns.items()
        )
        rows.append((f"{branch.do}: {where}", *cells))
    return Table(
        ("Branch", *(title for title, _ in columns.values())),
        tuple(rows),
        "ARM's branches, from the lowest S_c up: what share of rows takes each, and what a row "
        "costs there.",
    )


def _median(ratios: Iterable[float]) -> Estimate:
    values = list(ratios)
    return Estimate.exact(statistics.median(values), len(values))
