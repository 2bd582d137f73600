"""Explanations of a loaded system's verdicts, in Python and as ``score --why`` writes them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.guard.arguments import PARTS
from crossguard_jax.guard.encoding import Pictures
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.identity import guard_identity
from crossguard_jax.guard.reasons import FACTS, NUMBERS, PICTURES, Reasons
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.guard.why import Explainer, Why
from crossguard_jax.hf.trained import content_hash
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.report.heatmaps import overlay
from crossguard_jax.runtime import processes
from crossguard_jax.systems.system import System


def guard_inside(system: System) -> Guard | None:
    """The model whose margin a system's verdicts are of; None where they are of something else."""
    if isinstance(system, Immunized):
        return system.guard
    return system if isinstance(system, Guard) else None


def fingerprint(guard: Guard | None) -> str:
    """What a model is, for what is fitted to it; "" of none. In which type it computes does not
    count: what was fitted on one machine is read on another."""
    if guard is None:
        return ""
    facts = {name: fact for name, fact in guard_identity(guard).items() if name != "dtype"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def run_identity(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Explained` with a hash of what was fitted, for what goes on with a run."""
    if not options["folder"]:
        return dict(options)
    hashed, root = hashlib.sha256(), Path(options["folder"])
    for path in [root / FACTS, *sorted(root.glob(NUMBERS)), *sorted(root.glob(f"{PICTURES}/*"))]:
        hashed.update(hashlib.sha256(path.read_bytes()).digest())
    return {**options, "fitted": hashed.hexdigest()[:24]}


def explainer_of(
    system: System, folder: str | Path | None = None, parts: Sequence[str] = PARTS
) -> Explainer:
    """What explains a system's unsafe verdicts.

    Args:
        system: any.
        folder: what ``crossguard calibrate --as why`` has fitted to it; without it texts alone are
            scored without a picture, and no category is named.
        parts: names in `guard.arguments.PARTS`.

    Raises:
        UserError: no such part; the folder is missing, damaged, or another model's.
    """
    guard = guard_inside(system)
    reasons = Reasons.read(folder, fingerprint(guard)) if folder else None
    return Explainer(system, guard, reasons, parts)


def explain(
    system: System,
    images: Sequence[Pictures],
    texts: Sequence[object],
    *,
    folder: str | Path | None = None,
    parts: Sequence[str] = PARTS,
    batch_size: int = 16,
) -> list[tuple[Verdict | UserError, Why | None]]:
    """Verdicts, and of each unsafe one what it rests on.

    Example:
        >>> system = load("runs/quickstart/models/guard")
        >>> ((verdict, why),) = explain(system, ["kitchen.png"], ["can i touch the red one?"])
        >>> why.joint_only, why.peaks

    Args:
        system: any that `load` gives.
        images, texts, batch_size: as of ``score``.
        folder, parts: as of `explainer_of`.

    Raises:
        UserError: as of `explainer_of`.
    """
    explainer = explainer_of(system, folder, parts)
    verdicts = system.score_each(images, texts, batch_size=batch_size)
    return list(zip(verdicts, explainer.explain(images, texts, verdicts, batch_size), strict=True))


class Explained:
    """What ``score --why`` adds to the rows that it writes.

    Args:
        system: whose verdicts.
        folder: as of `explainer_of`; "" is none.
        parts: the same.
        heatmaps: a folder for pictures with their maps on them; None draws none.
        batch_size: rows to a forward pass.
    """

    def __init__(
        self,
        system: System,
        folder: str = "",
        parts: Sequence[str] = PARTS,
        heatmaps: str | None = None,
        batch_size: int = 16,
    ):
        self._explainer = explainer_of(system, folder, parts)
        self._heatmaps, self._batch_size = heatmaps, batch_size
        guard = guard_inside(system)
        self._crops = guard is not None and guard.encoder.processor.crops

    def rows(
        self, records: Sequence[Record], verdicts: Sequence[Verdict | UserError]
    ) -> list[dict[str, Any]]:
        """``why`` of each record, null where its verdict is not unsafe."""
        images, texts = [r.images for r in records], [r.text for r in records]
        each = self._explainer.explain(images, texts, verdicts, self._batch_size)
        if self._heatmaps is not None:
            for record, why in zip(records, each, strict=True):
                self._draw(Path(self._heatmaps), record, why)
        return [{"why": None if why is None else why.as_row()} for why in each]

    def _draw(self, folder: Path, record: Record, why: Why | None) -> None:
        """Named by the content, since ids need not be names of files."""
        name = content_hash(record.text, record.images)[:16]
        for i, heat in enumerate(() if why is None else why.heat):
            drawn = overlay(record.images[i], heat, self._crops)
            path = folder / f"{name}.{i}.png"
            processes.by_first(lambda path=path, drawn=drawn: write_atomic(path, drawn))
