"""Single rows to look at: the picture, the text, the truth and the verdict."""

import math
from dataclasses import dataclass

OUTCOMES = ("missed", "false alarm", "caught", "passed")
UNANSWERED = "no answer"


@dataclass(frozen=True)
class Example:
    """One scored row with what was scored.

    Attributes:
        id: The row's name.
        benchmark: Where it comes from.
        picture: An encoded picture (PNG, JPEG, ...); None for a row of text alone.
        text: The words.
        unsafe: The truth.
        p_unsafe: The system's probability, in [0, 1]; NaN where it gave no answer.
        threshold: At or above it the verdict is "unsafe".
        category: Within the benchmark; may be empty.
        why: What the verdict rests on, in a few words; may be empty.
        map: The picture as PNG with what of it counts laid over it, if there is one.
    """

    id: str
    benchmark: str
    picture: bytes | None
    text: str
    unsafe: bool
    p_unsafe: float
    threshold: float
    category: str = ""
    why: str = ""
    map: bytes | None = None

    @property
    def answered(self) -> bool:
        """Whether there is a verdict."""
        return not math.isnan(self.p_unsafe)

    @property
    def flagged(self) -> bool:
        """Whether the verdict is "unsafe"."""
        return self.p_unsafe >= self.threshold

    @property
    def verdict(self) -> str:
        """``safe`` or ``unsafe``."""
        return _word(self.flagged)

    @property
    def truth(self) -> str:
        """``safe`` or ``unsafe``."""
        return _word(self.unsafe)

    @property
    def right(self) -> bool:
        """Whether the verdict is the truth; a row without a verdict is wrong."""
        return self.answered and self.flagged == self.unsafe

    @property
    def outcome(self) -> str:
        """One of ``OUTCOMES``, or ``UNANSWERED``."""
        if not self.answered:
            return UNANSWERED
        if self.right:
            return "caught" if self.unsafe else "passed"
        return "missed" if self.unsafe else "false alarm"


def _word(unsafe: bool) -> str:
    return "unsafe" if unsafe else "safe"
