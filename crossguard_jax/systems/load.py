"""A folder as what it is: a guard, a guard with a check and a policy, or a detector."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jax.sharding import Mesh

from crossguard_jax.attacks.suite import digest
from crossguard_jax.cmai import policy as policies
from crossguard_jax.cmai.folders import is_immunized, load_immunized
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.errors import UserError
from crossguard_jax.guard.encoding import Pictures
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.identity import guard_identity
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.runtime.mesh import default_dtype, spans_processes
from crossguard_jax.systems.rivals.detector import Detector, is_detector
from crossguard_jax.systems.rivals.folders import load_detector
from crossguard_jax.systems.rivals.hidden_detect import HiddenDetect
from crossguard_jax.systems.rivals.rcs import Rcs


@runtime_checkable
class System(Protocol):
    """Gives verdicts: a `Guard`, an `Immunized` guard, a `Detector`."""

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


def load(
    path: str | Path,
    adapter: str | Path | None = None,
    dtype: str | None = "float32",
    *,
    noise_seed: int | None = None,
    **options: Any,
) -> Guard | Immunized | Detector:
    """What a folder is: an immunized guard with its policy, a detector, or a plain guard.

    Example:
        >>> system = load("runs/cmai/model")
        >>> system.score(["kitchen.png"], ["can i touch the red one ?"])[0].rejected

    Args:
        path: the folder.
        adapter: a PEFT adapter to lay over it; not over an immunized one.
        dtype: of the base's weights and the arithmetic; "auto" is bfloat16 on an accelerator and
            float32 elsewhere, None what the files have.
        noise_seed: in place of the secret that an immunized folder's noise is keyed by; for tests.
        options: of `Guard.from_pretrained`.

    Raises:
        UserError: whatever is wrong with the folder, in one message.
    """
    dtype = default_dtype() if dtype == "auto" else dtype
    if is_detector(path):
        if adapter is not None:
            raise UserError(f"{path}: is a detector, which names its own model and adapter")
        return load_detector(path, dtype, **options)
    if not is_immunized(path):
        return Guard.from_pretrained(path, adapter, dtype, **options)
    if adapter is not None:
        raise UserError(f"{path}: is immunized as it is; an adapter over it would undo its check")
    if spans_processes(options.get("mesh")):
        raise UserError(
            f"{path}: is immunized, and its policy is followed by each process for its own rows; "
            "give a --mesh of one process's devices"
        )
    return load_immunized(path, noise_seed=noise_seed, dtype=dtype, **options)


def guard_of(system: System) -> Guard:
    """The guard inside a system that we loaded.

    Raises:
        UserError: it is none of ours.
    """
    if isinstance(system, Guard):
        return system
    if isinstance(system, Immunized):
        return system.task.guard
    if isinstance(system, HiddenDetect | Rcs):
        return system.guard
    raise UserError(f"a {type(system).__name__} has no guard inside")


def identity(system: System) -> dict[str, Any]:
    """What a system's verdicts depend on beside their input and the threshold, as JSON values."""
    if isinstance(system, Detector):
        return system.identity()
    facts = guard_identity(guard_of(system))
    if not isinstance(system, Immunized):
        return facts
    reader = system.task.reader
    return facts | {
        "check": digest([system.trainable, None if reader is None else reader.state]),
        "policy": [policies.as_config(branch) for branch in system.policy.branches[:-1]],
        "regime": system.regime,
        "noise": hashlib.sha256(system.secret).hexdigest(),
    }


def identified(path: str) -> tuple[System, dict[str, Any]]:
    """`load`, and the `identity` of what was loaded: for rooms below that are handed a loader."""
    system = load(path)
    return system, identity(system)
