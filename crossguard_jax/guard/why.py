"""Why a verdict is unsafe: either half alone, what kind of harm, and where in the picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Float
from crossguard_jax.guard.arguments import PARTS
from crossguard_jax.guard.attribution import heatmaps
from crossguard_jax.guard.encoding import Pictures, pictures_of
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.reasons import Reasons, category_states
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.report.heatmaps import Box, peak

NEUTRAL = "describe the picture."
"""Stands for a text that asks for nothing."""
DIGITS = 4


@runtime_checkable
class Scores(Protocol):
    """Gives verdicts: any system."""

    def score_each(
        self,
        images: Sequence[Pictures],
        texts: Sequence[object],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
    ) -> list[Verdict | UserError]:
        """A verdict a row, or why there is none."""


@dataclass(frozen=True, slots=True)
class Why:
    """What an unsafe verdict rests on; what was not asked for, or is not there, is None or empty.

    Attributes:
        text_alone: p_unsafe of the text beside other pictures (`Reasons.alone` of those), or with
            none where there are no others; None of a row without a text or a picture.
        picture_alone: p_unsafe of the picture beside `NEUTRAL`.
        joint_only: whether it is unsafe only in combination: either half alone is safe.
        category: the likeliest kind of harm.
        p_category: its probability among all kinds.
        heat: for each picture nats of the margin by patch, of the square that the guard sees.
        peaks: for each picture the patch that speaks most for unsafe, in the picture's own pixels:
            left, top, right, bottom.
    """

    text_alone: float | None = None
    picture_alone: float | None = None
    joint_only: bool | None = None
    category: str = ""
    p_category: float | None = None
    heat: tuple[Float[np.ndarray, "G G"], ...] = ()
    peaks: tuple[Box, ...] = ()

    def as_row(self) -> dict[str, Any]:
        """As JSON has it: numbers to `DIGITS` digits, maps as lists of rows."""
        return {
            "text_alone": _rounded(self.text_alone),
            "picture_alone": _rounded(self.picture_alone),
            "joint_only": self.joint_only,
            "category": self.category,
            "p_category": _rounded(self.p_category),
            "heat": [np.round(each.astype(float), DIGITS).tolist() for each in self.heat],
            "peaks": [list(each) for each in self.peaks],
        }


class Explainer:
    """Explains the unsafe verdicts of a system; nothing is computed of the others.

    Args:
        system: gives verdicts.
        guard: the model inside, for what is read in it; None gives the halves alone.
        reasons: other pictures and kinds of harm, as fitted to the guard; None has neither.
        parts: names in `PARTS`.

    Raises:
        UserError: no such part.
    """

    def __init__(
        self,
        system: Scores,
        guard: Guard | None,
        reasons: Reasons | None = None,
        parts: Sequence[str] = PARTS,
    ):
        for part in parts:
            if part not in PARTS:
                raise UserError(f"why {part!r}: give some of {', '.join(PARTS)}")
        self._system, self._guard, self._parts = system, guard, parts
        self._reasons = reasons or Reasons()

    def explain(
        self,
        images: Sequence[Pictures],
        texts: Sequence[object],
        verdicts: Sequence[Verdict | UserError],
        batch_size: int = 16,
    ) -> list[Why | None]:
        """One explanation a row, in order; None where the verdict is not unsafe.

        Args:
            images, texts: the requests.
            verdicts: on them, by the same system.
            batch_size: rows to a forward pass.
        """
        places = [i for i, v in enumerate(verdicts) if isinstance(v, Verdict) and v.unsafe]
        out: list[Why | None] = [None] * len(verdicts)
        if not places:
            return out
        shown, words = [images[i] for i in places], [texts[i] for i in places]
        own = [v for v in (verdicts[i] for i in places) if isinstance(v, Verdict)]
        fields: list[dict[str, Any]] = [{} for _ in places]
        if "halves" in self._parts:
            self._halves(shown, words, own, fields, batch_size)
        if "category" in self._parts and self._guard and self._reasons.names:
            self._category(self._guard, shown, words, fields, batch_size)
        if "picture" in self._parts and self._guard:
            self._picture(self._guard, shown, words, fields, batch_size)
        for place, each in zip(places, fields, strict=True):
            out[place] = Why(**each)
        return out

    def _halves(
        self,
        images: Sequence[Pictures],
        texts: Sequence[object],
        verdicts: Sequence[Verdict],
        fields: list[dict[str, Any]],
        batch_size: int,
    ) -> None:
        both = [
            bool(pictures_of(p)) and bool(str(t).strip())
            for p, t in zip(images, texts, strict=True)
        ]
        places = [i for i, has_both in enumerate(both) if has_both]
        for each, has_both in zip(fields, both, strict=True):
            if not has_both:
                each["joint_only"] = False
        if not places:
            return
        some = [texts[i] for i in places]
        counts = [len(pictures_of(images[i])) for i in places]
        others: list[list[Pictures]] = [
            [(picture,) * n for n in counts] for picture in self._reasons.pictures
        ] or [[()] * len(places)]
        alone = self._reasons.alone(
            np.stack([self._scores(each, some, batch_size) for each in others])
        )
        picture = self._scores([images[i] for i in places], [NEUTRAL] * len(places), batch_size)
        for place, of_text, of_picture in zip(places, alone, picture, strict=True):
            cut = verdicts[place].threshold
            fields[place] |= {
                "text_alone": _number(of_text),
                "picture_alone": _number(of_picture),
                # A half that cannot be scored alone is no reason to say so: NaN compares as false.
                "joint_only": bool(of_text < cut and of_picture < cut),
            }

    def _scores(
        self, images: Sequence[Pictures], texts: Sequence[object], batch_size: int
    ) -> Float[np.ndarray, " B"]:
        each = self._system.score_each(images, texts, batch_size=batch_size)
        return np.array([np.nan if isinstance(v, UserError) else v.p_unsafe for v in each])

    def _category(
        self,
        guard: Guard,
        images: Sequence[Pictures],
        texts: Sequence[object],
        fields: list[dict[str, Any]],
        batch_size: int,
    ) -> None:
        states = category_states(guard, self._reasons.layers, images, texts, batch_size)
        for each, state in zip(fields, states, strict=True):
            if isinstance(state, UserError):
                continue
            p = self._reasons.probabilities(state[None])[0]
            each |= {"category": self._reasons.names[int(p.argmax())], "p_category": float(p.max())}

    def _picture(
        self,
        guard: Guard,
        images: Sequence[Pictures],
        texts: Sequence[object],
        fields: list[dict[str, Any]],
        batch_size: int,
    ) -> None:
        crops = guard.encoder.processor.crops
        maps = heatmaps(guard, images, texts, batch_size)
        for each, shown, heat in zip(fields, images, maps, strict=True):
            if isinstance(heat, UserError):
                continue
            pairs = zip(pictures_of(shown), heat, strict=True)
            peaks = tuple(peak(picture, own, crops) for picture, own in pairs)
            each |= {"heat": tuple(heat), "peaks": peaks}


def _number(p: float) -> float | None:
    return None if np.isnan(p) else float(p)


def _rounded(p: float | None) -> float | None:
    return None if p is None else round(p, DIGITS)
