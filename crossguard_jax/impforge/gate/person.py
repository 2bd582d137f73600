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
from crossguard_jax.report.sheet import Question, SheetItem, render

SHEET, DRAWN = "review.html", 50

QUESTIONS = (
    Question("text", "Is the text harmless by itself?"),
    Question("picture", "Is the picture harmless by itself?"),
    Question("intent", "Do both together ask what the query asks?"),
)
_INTRO = (
    "Rows that a forge wrote, some of which its gate dropped: which ones is not shown. Each has a "
    "query, a picture that was matched to it, and a text that is to mean the same beside the "
    "picture. Answer what you can, save the answers, and give the file to `forge --judged`; the "
    "data card then says how you and the gate agree."
)


@dataclass(frozen=True)
class Drawn:
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


def draw(verdicts: Path, triplets: Mapping[str, Triplet], n: int = DRAWN) -> list[Drawn]:
    """Rows for a person, half of them dropped at the gate where so many were, in mixed order.

    Args:
        verdicts: the gate's file.
        triplets: by their ids.
        n: how many.
    """
    rows = [v for _, v in jsonl.read_jsonl(verdicts) if isinstance(v, dict)]
    looked_at = [Drawn(triplets[v["triplet"]], v["text"], not v["reason"]) for v in rows]
    rng = np.random.default_rng(0)
    passed, dropped = (
        [of[i] for i in rng.permutation(len(of))]
        for of in ([d for d in looked_at if d.passed is flag] for flag in (True, False))
    )
    few = min(len(dropped), max(n // 2, n - len(passed)))
    both = passed[: n - few] + dropped[:few]
    return [both[i] for i in rng.permutation(len(both))]


def sheet(drawn: Sequence[Drawn]) -> str:
    """The page on which a person judges."""
    items = [
        SheetItem(d.id, d.triplet.image, (("Query", d.triplet.query), ("Text", d.text)))
        for d in drawn
    ]
    return render("Forged rows to judge", _INTRO, QUESTIONS, items, "judged.json")


def agreement(judged: str | Path, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """How a person's answers agree with the gate: ``n``, ``agreement`` and ``kappa``, and more.

    A row passes with a person if all questions are answered with yes; a row with an open question
    does not count.

    Args:
        judged: what the sheet saved.
        drawn: the rows of the run's own sheet.

    Raises:
        UserError: the file is no such, has no answered row, or is of other rows.
    """
    answers = _read(Path(judged))
    ours = {d.id: d.passed for d in drawn}
    if strange := [id for id in answers if id not in ours]:
        raise UserError(
            f"{judged}: row {short(repr(strange[0]))} is not on this run's {SHEET}; judge that one"
        )
    names = [question.name for question in QUESTIONS]
    whole = {id: row for id, row in answers.items() if all(name in row for name in names)}
    if not whole:
        raise UserError(f"{judged}: no row has all its answers; answer some on {SHEET}, and save")
    person = np.array([all(row[name] for name in names) for row in whole.values()])
    gate = np.array([ours[id] for id in whole])
    return {
        "n": len(whole),
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


def _read(path: Path) -> dict[str, dict[str, bool]]:
    value = jsonl.read_json(path)
    rows = value.get("rows") if isinstance(value, dict) else None
    if not isinstance(rows, dict):
        raise UserError(f"{path}: no 'rows' in it; give what {SHEET} saved")
    for id, row in rows.items():
        if not isinstance(row, dict) or not all(isinstance(v, bool) for v in row.values()):
            raise UserError(
                f"{path}, row {short(repr(id))}: an answer is true or false; save the sheet again"
            )
    return rows
