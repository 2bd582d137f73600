"""What every detector is beside its figure: a cut from benign rows, and verdicts.

A detector gives each row a figure of its own unit, higher where the row is less safe. A verdict's
``p_unsafe`` is that figure's distance from the cut, in standard deviations of benign rows, through
a logistic curve: it ranks as the figure does, is 0.5 at the cut, and is no probability.
"""

import abc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Float
from crossguard_jax.guard.encoding import Pictures
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.hf.folder import check_number, read_object
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.systems.system import BaseSystem

FILE = "detector.json"
"""What a detector's folder is known by."""


@dataclass(frozen=True)
class Cut:
    """Where a figure begins to be unsafe.

    Attributes:
        value: in the figure's unit.
        scale: standard deviation of benign rows' figures.
        fpr: the share of benign rows that may be above.
        n: benign rows that it was chosen on.
    """

    value: float
    scale: float
    fpr: float
    n: int

    @classmethod
    def choose(cls, benign: Float[np.ndarray, " N"], fpr: float) -> "Cut":
        """The least cut that at most ``fpr`` of the benign figures reach.

        Raises:
            UserError: too few rows for such a share.
        """
        if not 0 < fpr < 1 or len(benign) * fpr < 1:
            raise UserError(
                f"--fpr {fpr:g} of {len(benign)} benign rows is less than one row; give more rows"
            )
        allowed = int(len(benign) * fpr)
        highest = np.sort(benign.astype(np.float64))[::-1]
        value = np.nextafter(highest[allowed], np.inf)  # above the first that may not reach it
        return cls(float(value), float(max(benign.std(), 1e-12)), fpr, len(benign))

    def p_unsafe(self, figure: float) -> float:
        """0.5 at the cut, more above it."""
        z = np.clip((figure - self.value) / self.scale, -500, 500)
        return float(1 / (1 + np.exp(-z)))


class Detector(BaseSystem):
    """Ranks rows by a figure.

    Args:
        settings: label words and lengths; the threshold is 0.5.
        cut: where a figure begins to be unsafe.
        folder: where it was saved, or its model's.
    """

    kind: str

    def __init__(self, settings: Settings, cut: Cut, folder: Path):
        super().__init__(settings, folder)
        self.cut = cut
        self.remarks: tuple[str, ...] = ()

    @abc.abstractmethod
    def figures(
        self, images: Sequence[Pictures], texts: Sequence[object], batch_size: int = 16
    ) -> list[float | UserError]:
        """Each row's figure, the worst of its windows; or the row's error."""

    def score_each(
        self,
        images: Sequence[Pictures],
        texts: Sequence[object],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
    ) -> list[Verdict | UserError]:
        """The same, with the error of each row that has one in its place."""
        figures = self.figures(images, texts, batch_size)
        return [x if isinstance(x, UserError) else self._judged(x, threshold) for x in figures]

    def _judged(self, figure: float, threshold: float | None) -> Verdict | UserError:
        if np.isnan(figure):  # NaN compares as safe
            return UserError(f"{self.kind}: the row's figure is not a number")
        return self.verdict(self.cut.p_unsafe(figure), threshold)


def write_facts(folder: Path, detector: Detector, facts: dict[str, Any]) -> None:
    """``detector.json``: the kind, the cut, and the kind's own facts."""
    content = {"kind": detector.kind, "cut": asdict(detector.cut), **facts}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, json.dumps(content, indent=2) + "\n")


def read_facts(folder: Path, names: Sequence[str]) -> tuple[Cut, dict[str, Any]]:
    """What `write_facts` wrote.

    Raises:
        UserError: the file is damaged, or one of the kind's ``names`` is missing.
    """
    path = folder / FILE
    facts = read_object(path)
    cut = facts.get("cut")
    if not isinstance(cut, dict) or set(cut) != {"value", "scale", "fpr", "n"}:
        raise UserError(f"{path}: cut {cut!r} is none; fit the detector anew")
    for name, value in cut.items():
        check_number(f"{path}: cut.{name}", value, float("-inf"))
    if missing := [name for name in ("kind", *names) if name not in facts]:
        raise UserError(f"{path}: {', '.join(missing)} is missing; fit the detector anew")
    return Cut(**cut), facts


def is_detector(path: str | Path) -> bool:
    """Whether a folder is a saved detector."""
    return (Path(path) / FILE).is_file()


def readable(rows: Sequence[np.ndarray | UserError]) -> list[np.ndarray]:
    """The rows, where each could be read.

    Raises:
        UserError: the first that could not.
    """
    for i, row in enumerate(rows):
        if isinstance(row, UserError):
            raise UserError(f"row {i}: {row}") from row
    return [row for row in rows if not isinstance(row, UserError)]
