"""What the verdicts rest on that a system's page lists: ``evaluate --why``."""

from collections.abc import Sequence
from dataclasses import replace

from crossguard_jax.evals.benchmarks import TRAINED_ON
from crossguard_jax.evals.scoring import Scored
from crossguard_jax.guard.arguments import PARTS
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.guard.why import Why
from crossguard_jax.report.examples import Example
from crossguard_jax.report.heatmaps import overlay
from crossguard_jax.systems.system import System
from crossguard_jax.systems.why import explainer_of, guard_inside


class ExplainedRows:
    """Explains rows of a report.

    Args:
        system: whose verdicts they are.
        scored: its verdicts.
        folder: what was fitted to it, as of `systems.why.explainer_of`; "" is none, and then there
            are maps alone.
        batch_size: rows to a forward pass.

    Raises:
        UserError: as of `explainer_of`.
    """

    def __init__(self, system: System, scored: Scored, folder: str, batch_size: int = 16):
        guard = guard_inside(system)
        # What was fitted to a guard has the other pictures that a text alone stands beside: without
        # them most explicit texts are "unsafe only in combination". A detector's is no probability.
        parts = PARTS if folder and guard is not None else ("picture",)
        self._explainer = explainer_of(system, folder, parts)
        self._crops = guard is not None and guard.encoder.processor.crops
        self._rows = {(name, record.id): (record, verdict) for name, record, verdict in scored}
        self._batch_size = batch_size

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The rows, those whose verdict is unsafe with a reason, and a map of their first
        picture."""
        keys = [(each.benchmark.removesuffix(TRAINED_ON), each.id) for each in examples]
        rows = [self._rows[key] for key in keys]
        images, texts = [r.images for r, _ in rows], [r.text for r, _ in rows]
        # By the report's threshold, which need not be the system's own.
        verdicts = [
            replace(verdict, unsafe=example.flagged, threshold=example.threshold)
            if isinstance(verdict, Verdict)
            else verdict
            for example, (_, verdict) in zip(examples, rows, strict=True)
        ]
        reasons = self._explainer.explain(images, texts, verdicts, self._batch_size)
        return [
            example
            if why is None
            else replace(
                example,
                why=in_words(why),
                map=overlay(example.picture, why.heat[0], self._crops)
                if example.picture and why.heat
                else None,
            )
            for example, why in zip(examples, reasons, strict=True)
        ]


def in_words(why: Why) -> str:
    """A reason on one line; "" where nothing is known."""
    halves = [
        f"{half} alone {p:.2f}"
        for half, p in (("text", why.text_alone), ("picture", why.picture_alone))
        if p is not None
    ]
    verdict = ["unsafe only in combination"] if why.joint_only else []
    kind = [f"{why.category} ({why.p_category:.0%})"] if why.p_category is not None else []
    return "; ".join([*verdict, *halves, *kind])
