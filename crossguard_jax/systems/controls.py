"""What every table is read against: systems that look at nothing, or at half of a row."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.guard.encoding import Pictures, pictures_of
from crossguard_jax.guard.guard import same_length
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.systems.system import BaseSystem, System, costs_of


class Constant(BaseSystem):
    """Says the same of every row.

    Args:
        unsafe: what.
        threshold: None is 0.5.
    """

    remarks = ("a control: it looks at nothing",)

    def __init__(self, unsafe: bool, threshold: float | None = None):
        name = "always_unsafe" if unsafe else "always_safe"
        super().__init__(Settings(threshold=0.5 if threshold is None else threshold), Path(name))
        self._p = float(unsafe)

    def score_each(
        self,
        images: Sequence[Pictures],
        texts: Sequence[object],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
    ) -> list[Verdict | UserError]:
        """See `BaseSystem`."""
        same_length(images, texts)
        return [self.verdict(self._p, threshold) for _ in texts]

    def identity(self) -> dict[str, Any]:
        """See `BaseSystem`."""
        return {"constant": self._p}


SIDES = ("text", "picture")
NOTHING = {sees: f"it has no {sees}, which is all that this control sees" for sees in SIDES}
"""Why a control has no answer to a row: no fault of the row's or the system's."""


class HalfBlind(BaseSystem):
    """A system that is given one modality of each row: the other is left out.

    A row without a picture keeps its text, so that no row counts as wrong for what it never had. A
    row without a text has nothing left beside its pictures: no answer, which is nobody's fault.

    Args:
        system: any.
        sees: "text" or "picture".
        identity: of the system.
    """

    def __init__(self, system: System, sees: str, identity: dict[str, Any]):
        super().__init__(system.settings, system.folder)
        self.system, self.mesh, self._sees, self._identity = system, system.mesh, sees, identity
        self.remote = isinstance(system, BaseSystem) and system.remote
        of_its = system.remarks if isinstance(system, BaseSystem) else ()
        where = ", of rows that have one" * (sees == "picture")
        self.remarks = (f"a control: it is given the {sees} alone{where}", *of_its)

    def score_each(
        self,
        images: Sequence[Pictures],
        texts: Sequence[object],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
    ) -> list[Verdict | UserError]:
        """See `BaseSystem`."""
        same_length(images, texts)
        if self._sees == "text":
            images = [None] * len(texts)
        else:
            texts = [
                "" if pictures_of(shown) else text
                for shown, text in zip(images, texts, strict=True)
            ]
        seen = [i for i, text in enumerate(texts) if text or pictures_of(images[i])]
        verdicts = self.system.score_each(
            [images[i] for i in seen],
            [texts[i] for i in seen],
            batch_size=batch_size,
            threshold=threshold,
        )
        outcomes: list[Verdict | UserError] = [UserError(NOTHING[self._sees])] * len(texts)
        for i, verdict in zip(seen, verdicts, strict=True):
            outcomes[i] = verdict
        return outcomes

    def identity(self) -> dict[str, Any]:
        """See `BaseSystem`."""
        return {"sees": self._sees, "of": self._identity}

    def costs(self) -> Iterator[str]:
        """See `BaseSystem`."""
        yield from costs_of(self.system)
