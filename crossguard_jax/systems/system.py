"""What gives verdicts, whatever it is inside."""

import abc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.guard.encoding import Pictures
from crossguard_jax.guard.guard import raised
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.verdict import Verdict


@runtime_checkable
class System(Protocol):
    """Gives verdicts: a `Guard`, an `Immunized` guard, a `BaseSystem`."""

    @property
    def settings(self) -> Settings:
        """Prompt, threshold and lengths."""

    @property
    def folder(self) -> Path:
        """Where it comes from."""

    @property
    def mesh(self) -> Mesh | None:
        """Where it computes."""

    def score(self, images: Sequence[Pictures], texts: Sequence[str]) -> list[Verdict]:
        """One verdict a row, in order."""

    def score_each(
        self,
        images: Sequence[Pictures],
        texts: Sequence[object],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
    ) -> list[Verdict | UserError]:
        """The same, with the error of each row that has one in its place."""


class BaseSystem(abc.ABC):
    """A `System` that is no guard of ours.

    Args:
        settings: label words and threshold.
        folder: where it comes from.
    """

    mesh: Mesh | None = None
    remarks: tuple[str, ...] = ()
    """What is to be said beside its row in a table."""
    remote = False
    """Whether an endpoint answers, so that its time is the network's, or that of reading what was
    kept of it."""

    def __init__(self, settings: Settings, folder: Path):
        self.settings, self.folder = settings, folder

    @abc.abstractmethod
    def score_each(
        self,
        images: Sequence[Pictures],
        texts: Sequence[object],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
    ) -> list[Verdict | UserError]:
        """One verdict a row, in order, or why there is none."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """What its verdicts depend on beside their input and the threshold, as JSON values."""

    def score(
        self, images: Sequence[Pictures], texts: Sequence[str], **options: Any
    ) -> list[Verdict]:
        """One verdict a row, in order; ``options`` are those of `score_each`."""
        return raised(self.score_each(images, texts, **options))

    def costs(self) -> Iterator[str]:
        """What the work has cost so far, where it costs more than time, one a line."""
        yield from ()

    def verdict(self, p: float, threshold: float | None = None, **fields: Any) -> Verdict:
        """A verdict of this score; ``fields`` are more of a `Verdict`'s."""
        cut, labels = self.settings.threshold if threshold is None else threshold, self.labels
        return Verdict(p, p >= cut, cut, labels[p >= cut], **fields)

    @property
    def labels(self) -> tuple[str, str]:
        """The (negative, positive) label word."""
        return self.settings.prompt.negative, self.settings.prompt.positive


def costs_of(system: System) -> list[str]:
    """What a system's work has cost; of our own guards, nothing."""
    return [*system.costs()] if isinstance(system, BaseSystem) else []


def notes_of(system: System) -> list[str]:
    """What is to be said when a system has worked: its remarks, and the cost."""
    return [*getattr(system, "remarks", ()), *costs_of(system)]
