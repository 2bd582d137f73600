"""What a run over rows came to, and how it is said."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crossguard_jax.core import metrics
from crossguard_jax.data.records import KINDS_SHOWN, kind

BRANCHES = {
    "reject": "stopped, since text and picture do not agree",
    "smooth": "judged through noise",
    "robust": "judged by the robust regime",
    "flag": "flagged for review",
}
"""What a policy's branches are called in front of people."""


@dataclass
class Tally:
    """What a run came to, counted row by row.

    Attributes:
        words: the (negative, positive) label words.
        verdicts: rows with one.
        unsafe: verdicts for the positive word.
        windowed: verdicts on a text that was read in several windows.
        branches: verdicts by what the policy did.
        rejected: rows without a verdict, by kind of reason.
        other_labels: verdicts on rows whose label is neither word.
        labelled: ``(unsafe by the verdict, unsafe in truth)`` of the rows that have a label.
    """

    words: tuple[str, str]
    verdicts: int = 0
    unsafe: int = 0
    windowed: int = 0
    branches: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    other_labels: int = 0
    labelled: list[tuple[bool, bool]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows with a verdict and rows without."""
        return self.verdicts + self.rejected.total()

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts a row of either file."""
        if "reason" in row:
            self.rejected[kind(row["reason"])] += 1
            return
        self.verdicts += 1
        self.unsafe += row["unsafe"]
        self.windowed += row["windows"] > 1
        self.branches[row["branch"]] += 1
        truth = row.get("true_label")
        if truth in self.words:
            self.labelled.append((row["unsafe"], truth == self.words[1]))
        elif truth:
            self.other_labels += 1

    def lines(self) -> Iterator[str]:
        """The summary."""
        negative, positive = self.words
        share = f" ({self.unsafe / self.verdicts:.1%})" if self.verdicts else ""
        yield (
            f"{self.rows:,} rows: {self.verdicts:,} verdicts, {self.unsafe:,} of them "
            f"{positive}{share}; {self.rejected.total():,} rejected"
        )
        if self.windowed:
            yield f"  long texts, read in windows: {self.windowed:,}"
        for branch, n in sorted(self.branches.items()):
            if branch != "accept":
                yield f"  {BRANCHES[branch]}: {n:,}"
        for reason, n in self.rejected.most_common(KINDS_SHOWN):
            yield f"  {n:,} rejected: {reason}"
        if (others := len(self.rejected) - KINDS_SHOWN) > 0:
            yield f"  ... and {others:,} other reasons"
        if self.labelled:
            says, truth = np.array(self.labelled, bool).T
            scores = says.astype(np.float64)
            figures = {
                "accuracy": metrics.accuracy(scores, truth, 0.5),
                f"ASR ({positive} rows passed as {negative})": metrics.attack_success_rate(
                    scores, truth, 0.5
                ),
                f"FPR ({negative} rows flagged as {positive})": metrics.false_positive_rate(
                    scores, truth, 0.5
                ),
            }
            for name, e in figures.items():
                value = f"{e.value:.1%} [{e.low:.1%}, {e.high:.1%}]" if e.n else "no such row"
                yield f"  {name}: {value}, n = {e.n:,}"
        if self.other_labels:
            yield (
                f"  {self.other_labels:,} rows have a true label that is neither {negative!r} nor "
                f"{positive!r}; they count in no figure"
            )
