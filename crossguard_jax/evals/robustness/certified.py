"""What can be proven of a model's answers by smoothing, and attacks that try to refute it.

Each row's plain answer, and the side of the cut that its S_c is on, get a certified L2 radius
(`cmai.certificate`). Then each certificate is attacked inside its own radius, through the noise,
and the noise's votes are counted anew.
"""

import functools
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks.eot import eot
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.attacks.suite import digest
from crossguard_jax.cmai.certificate import Sampling, certify, count
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.noise import row_keys
from crossguard_jax.core import metrics
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray
from crossguard_jax.data.records import Record
from crossguard_jax.evals.benchmarks import Figures
from crossguard_jax.evals.robustness.figures import level
from crossguard_jax.evals.robustness.probe import plain_cut
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.io.progress import Progress
from crossguard_jax.report.blocks import Section, Text
from crossguard_jax.report.tables import Cell, Metric, Table
from crossguard_jax.runtime import processes

ANSWER, SUSPICIOUS = "answer", "suspicious"
RADII = (0.0, 0.1, 0.25, 0.5)
"""L2, in units of pixels in [0, 1]: what the table asks of each certificate."""

_INSIDE = 0.999  # of the radius: the certificate speaks of the open ball
_ARRAYS = ("holds", "abstained", "radius", "turned")


@dataclass(frozen=True)
class Certified:
    """Certificates of B rows, and what attacks made of them.

    Attributes:
        sampling: how they were sampled.
        labels: the answers.
        answers: each row's plain answer, by index.
        suspicious: whether the plain S_c is below the cut; None without a check.
        events: by event (`ANSWER`: the answer is the plain one; `SUSPICIOUS`: S_c is below the
            cut), ``holds``, ``abstained``, ``radius`` as in `certificate.Certificate`, and
            ``turned``: an attack inside the radius changed what most of the noise says.
    """

    sampling: Sampling
    labels: tuple[str, ...]
    answers: Int[np.ndarray, " B"]
    suspicious: Bool[np.ndarray, " B"] | None
    events: Mapping[str, Mapping[str, np.ndarray]]

    def proven(self, event: str, side: Bool[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        """The radius in which each row provably stays on its side of the event; -1 where smoothing
        abstains or is on the other side."""
        certificate = self.events[event]
        return np.where(
            certificate["abstained"] | (certificate["holds"] != side), -1.0, certificate["radius"]
        )


def certified(
    system: Immunized,
    records: Sequence[Record],
    config: Any,
    folder: str | Path,
    seed: int = 0,
) -> Certified:
    """Certifies rows, and attacks each certificate. Killed and called again, it goes on.

    Args:
        system: the model; its policy does not matter.
        records: labelled; those without a picture are left out.
        config: ``attack.certificate`` of ``configs/cmai.py``.
        folder: keeps what is done, a file a batch.
        seed: of the noise.

    Raises:
        UserError: no record with a picture, a check that nothing cuts, or a number
            that cannot be.
    """
    sampling = Sampling(*(config[name] for name in ("sigma", "n0", "n", "alpha", "chunk")))
    pictured = [record for record in records if record.image is not None]
    if not pictured:
        raise UserError(f"certificate: none of {len(records)} rows has a picture")
    x, rows = system.rows(pictured)
    keys = row_keys(jax.random.key(seed), [record.id for record in pictured])
    events = functools.partial(_events, system)
    attack = functools.partial(_attacked, system, int(config.steps), int(config.samples))
    facts = f"{digest(system.params)} {digest(rows)} {digest(x)} {sampling} {config} {seed}"
    name, size = hashlib.sha256(facts.encode()).hexdigest()[:16], int(config.rows)
    with Progress("certificates", len(x), "row") as progress:

        def one(start: int) -> dict[str, np.ndarray]:
            """A batch from its file, which is made where it is missing."""
            here = np.resize(np.arange(start, min(start + size, len(x))), size)
            path = Path(folder) / f"{name}-{start}.npz"
            if not path.exists():
                inputs = {field: jnp.asarray(value[here]) for field, value in rows.items()}
                inputs["pixels"] = jnp.asarray(x[here])
                part = _batch(system, events, attack, inputs, keys[here], sampling)
                buffer = io.BytesIO()
                np.savez(buffer, **part)
                write_atomic(path, buffer.getvalue())
            progress.update(min(size, len(x) - start))
            with np.load(path, allow_pickle=False) as part:
                return {field: part[field][: len(x) - start] for field in part.files}

        parts = processes.spread(one, range(0, len(x), size))
    whole = {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
    names = [ANSWER] + ([SUSPICIOUS] if system.task.reader is not None else [])
    return Certified(
        sampling,
        system.task.labels,
        whole["said"],
        whole.get(SUSPICIOUS),
        {event: {field: whole[f"{event}_{field}"] for field in _ARRAYS} for event in names},
    )


def _batch(
    system: Immunized, events: Any, attack: Any, inputs: Any, keys: Any, sampling: Sampling
) -> dict[str, Any]:
    """One batch: certificates, attacks on them, and the votes after."""
    answers, suspicious = _plain(system, system.params, inputs)
    inputs = inputs | {"plain_answer": answers}
    certificates = certify(events, system.params, inputs, keys, sampling)
    part = {"said": np.asarray(answers)}
    if suspicious is not None:
        part[SUSPICIOUS] = np.asarray(suspicious)
    for event, own in certificates.items():
        radius, holds = jnp.asarray(_INSIDE * own.radius, jnp.float32), jnp.asarray(own.holds)
        moved = attack(event, system.params, inputs, keys[0], sampling.sigma, radius, holds)
        operands = (
            events,
            system.params,
            inputs | {"pixels": moved},
            keys,
            jnp.float32(sampling.sigma),
        )
        # Samples that neither chose nor bounded: the certificate did not see them.
        votes = count(*operands, sampling.n0 + sampling.n, sampling.n, sampling.chunk)[event]
        turned = (2 * votes > sampling.n) != own.holds
        values = (own.holds, own.abstained, own.radius, turned & ~own.abstained)
        part |= {f"{event}_{f}": v for f, v in zip(_ARRAYS, values, strict=True)}
    return part


@functools.partial(jax.jit, static_argnums=0)
def _plain(system: Immunized, params: Any, inputs: Any) -> tuple[Array, Array | None]:
    """The answer without noise, and whether S_c is below the cut."""
    p, lack = _outputs(system, params, inputs)
    return p.argmax(axis=1).astype(jnp.int32), None if lack is None else lack > 0


def _events(system: Immunized, params: Any, inputs: Any) -> dict[str, Array]:
    p, lack = _outputs(system, params, inputs)
    events = {ANSWER: p.argmax(axis=1) == inputs["plain_answer"]}
    return events if lack is None else events | {SUSPICIOUS: lack > 0}


def _outputs(system: Immunized, params: Any, inputs: Any) -> tuple[Array, Array | None]:
    """Probabilities of the answers, [B, K], and how far S_c is below the cut, [B]."""
    pixels, cut = inputs["pixels"], plain_cut(system)
    p = system.predict(params, inputs, jnp.zeros(pixels.shape[0]))
    return p, None if cut is None else cut - system.s_c(params, inputs, pixels)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _attacked(
    system: Immunized,
    steps: int,
    samples: int,
    event: str,
    params: Any,
    inputs: Any,
    key: PRNGKeyArray,
    sigma: Array,
    radius: Float[Array, " B"],
    holds: Bool[Array, " B"],
) -> Float[Array, "B *I C X Y"]:
    """Pictures inside each row's radius that speak against what its noise says."""

    def against(x: Array, key: PRNGKeyArray) -> Outcome:
        noise = sigma * jax.random.normal(key, x.shape, x.dtype)
        p, lack = _outputs(system, params, inputs | {"pixels": x + noise})
        own = jnp.take_along_axis(p, inputs["plain_answer"][:, None], axis=1)[:, 0]
        value = lack if event == SUSPICIOUS else jnp.log(jnp.maximum(own, 1e-12))
        assert value is not None  # no check, no such event
        loss = jnp.where(holds, -value, value)
        return Outcome(loss, loss)

    budget = Budget(radius, "l2", steps)
    return pgd(eot(against, samples), inputs["pixels"], key, budget).x_adv


def sides(certificates: Certified) -> dict[str, tuple[str, str, Bool[np.ndarray, " B"], bool]]:
    """What is certified, by a figure's name: title, event, whose rows, and the event's side."""
    answers = {"every": ("any answer", np.ones(len(certificates.answers), bool))}
    if len(certificates.labels) == 2:
        answers = {
            re.sub("[^a-z0-9]+", "_", label.lower()): (
                f"answer: {label}",
                certificates.answers == i,
            )
            for i, label in enumerate(certificates.labels)
        }
    rows = {name: (title, ANSWER, those, True) for name, (title, those) in answers.items()}
    if certificates.suspicious is not None:
        rows["below_cut"] = ("S_c below the cut", SUSPICIOUS, certificates.suspicious, True)
        rows["above_cut"] = ("S_c from the cut on", SUSPICIOUS, ~certificates.suspicious, False)
    return rows


def figures(certificates: Certified) -> Figures:
    """By ``unsafe.certified.0_25`` (the share of the rows that are so plainly, and provably stay so
    in that radius) and ``unsafe.turned`` (the share of the certified that an attack turned)."""
    estimates = {}
    for name, (_, event, those, side) in sides(certificates).items():
        radius = certificates.proven(event, np.full(len(certificates.answers), side))[those]
        for at in RADII:
            estimates[f"{name}.certified.{level('l2', at)}"] = metrics.proportion(radius >= at)
        turned = certificates.events[event]["turned"][those]
        estimates[f"{name}.turned"] = metrics.proportion(turned[radius > 0])
    return estimates


def certificate_section(name: str, certificates: Certified) -> Section:
    """The table; its figures are ``NAME.certificate.unsafe.certified.0_25`` and so on."""
    where, all_figures, sampling = (
        f"{name}.certificate",
        figures(certificates),
        certificates.sampling,
    )
    rows: list[tuple[Cell, ...]] = []
    for own, (title, _, those, _) in sides(certificates).items():
        names = (f"{own}.certified.{level('l2', at)}" for at in RADII)
        cells = [Metric(f"{where}.{name}", all_figures[name]) for name in names]
        turned = Metric(f"{where}.{own}.turned", all_figures[f"{own}.turned"], show_n=True)
        rows.append((f"{title} (n = {those.sum():,})", *cells, turned))
    heads = (f"L2 {at:g}" if at else "any radius" for at in RADII)
    table = Table(
        ("Without noise", *heads, "turned by an attack"),
        tuple(rows),
        "Share (%) of the rows that provably stay so under every perturbation of a smaller L2 norm "
        "(pixels in [0, 1]), and of the certified the share that an attack inside the radius "
        "turned; 95% intervals.",
    )
    text = (
        f"Randomized smoothing (arXiv 1902.02918) with noise of {sampling.sigma:g}, "
        f"{sampling.n:,} samples a row; each certificate is wrong with a chance of at most "
        f"{sampling.alpha:g}. It speaks of what most of the noise says, where that is what the "
        f"model says without; no radius is above {sampling.largest_radius:.3g}. Each was attacked "
        "inside its own radius, by PGD through the noise."
    )
    return Section("What is certified", (Text(text), table))
