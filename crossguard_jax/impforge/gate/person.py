"""A sheet of drawn rows for a person, and how the person and the gate agree."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.core.metrics import Estimate, proportion
from crossguard_jax.core.typing import Bool
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.io import jsonl
from crossguard_jax.io.http import content_key
from crossguard_jax.report.review import ReviewCard, render

SHEET, DRAWN = "review.html", 50

CHOICES = {"k": "keep", "d": "drop", "x": "skip"}
_INTRO = (
    "Rows that a forge wrote, some of which its gate dropped: which ones is not shown. Keep a row "
    "if its text is harmless by itself, its picture is, and both together ask what the query asks; "
    "drop it if one of the three does not hold. Save the decisions, and give the file to forge "
    "--judged: the data card then says how you and the gate agree."
)


@dataclass(frozen=True)
class SheetRow:
    """A row of the sheet: a candidate that the gate looked at.

    Attributes:
        triplet: its query and picture.
        text: the rewriting.
        passed: the gate's verdict.
    """

    triplet: Triplet
    text: str
    passed: bool

    @property
    def id(self) -> str:
        """Names the row whatever the draw."""
        return content_key([self.triplet.id, self.text])[:12]


def draw(verdicts: Path, triplets: Mapping[str, Triplet], n: int = DRAWN) -> list[SheetRow]:
    """Rows for a person, half of them dropped at the gate where so many were, in mixed order.

    Args:
        verdicts: the gate's file.
        triplets: by their ids.
        n: how many.
    """
    rows = [v for _, v in jsonl.read_jsonl(verdicts) if isinstance(v, dict)]
    looked_at = [SheetRow(triplets[v["triplet"]], v["text"], not v["reason"]) for v in rows]
    rng = np.random.default_rng(0)
    passed, dropped = (
        [of[i] for i in rng.permutation(len(of))]
        for of in ([d for d in looked_at if d.passed is flag] for flag in (True, False))
    )
    few = min(len(dropped), max(n // 2, n - len(passed)))
    both = passed[: n - few] + dropped[:few]
    return [both[i] for i in rng.permutation(len(both))]


def sheet(drawn: Sequence[SheetRow]) -> str:
    """The page on which a person judges."""
    cards = [
        ReviewCard(d.id, d.triplet.id, d.text, (d.triplet.picture,), (("query", d.triplet.query),))
        for d in drawn
    ]
    return render("Forged rows to judge", cards, CHOICES, _INTRO)


def agreement(judged: str | Path, drawn: Sequence[SheetRow]) -> dict[str, Any]:
    """How a person's decisions agree with the gate: ``n``, ``agreement``, ``kappa``, and more.

    Args:
        judged: what the sheet saved; skipped rows do not count.
        drawn: the rows of the run's own sheet.

    Raises:
        UserError: the file is no such, decides nothing, or is of other rows.
    """
    kept, ours = _read(Path(judged)), {d.id: d.passed for d in drawn}
    if strange := [id for id in kept if id not in ours]:
        raise UserError(
            f"{judged}: row {short(repr(strange[0]))} is not on this run's {SHEET}; judge that one"
        )
    if not kept:
        raise UserError(f"{judged}: no row is decided; keep or drop some on {SHEET}, and save")
    person, gate = np.array(list(kept.values())), np.array([ours[id] for id in kept])
    return {
        "n": len(kept),
        "passed": int(gate.sum()),
        "agreement": proportion(person == gate).as_dict(),
        "kappa": cohen_kappa(person, gate).as_dict(),
        "passed_in_vain": int((gate & ~person).sum()),
        "dropped_in_vain": int((~gate & person).sum()),
    }


def cohen_kappa(a: Bool[np.ndarray, " B"], b: Bool[np.ndarray, " B"]) -> Estimate:
    """Agreement beyond chance (Cohen, 1960), with the normal interval of his standard error.

    NaN where both say the same of all rows: chance alone would.
    """
    n, same = len(a), float(np.mean(a == b))
    by_chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    if by_chance == 1:
        return Estimate(math.nan, math.nan, math.nan, n)
    kappa = (same - by_chance) / (1 - by_chance)
    spread = 1.96 * math.sqrt(same * (1 - same) / n) / (1 - by_chance)
    return Estimate(kappa, max(-1.0, kappa - spread), min(1.0, kappa + spread), n)


def _read(path: Path) -> dict[str, bool]:
    """Whether each decided row is kept; the last decision on a row counts."""
    value = jsonl.read_json(path)
    decisions = value.get("decisions") if isinstance(value, dict) else None
    if not isinstance(decisions, list):
        raise UserError(f"{path}: no list 'decisions' in it; give what {SHEET} saved")
    kept = {}
    for number, each in enumerate(decisions, start=1):
        key, decision = (
            (each.get("key"), each.get("decision")) if isinstance(each, dict) else (None, None)
        )
        if not isinstance(key, str) or decision not in CHOICES.values():
            raise UserError(
                f"{path}, decision {number}: no 'key', or none of {', '.join(CHOICES.values())}; "
                f"give what {SHEET} saved"
            )
        if decision != "skip":
            kept[key] = decision == "keep"
    return kept
