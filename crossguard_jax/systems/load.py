"""A system as what it is: a guard, one with a check and a policy, a detector, or one by name."""

import hashlib
from pathlib import Path
from typing import Any

from crossguard_jax.attacks.suite import digest
from crossguard_jax.cmai import policy as policies
from crossguard_jax.cmai.folders import is_immunized, load_immunized
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.errors import UserError
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.identity import guard_identity
from crossguard_jax.runtime.mesh import default_dtype, spans_processes
from crossguard_jax.systems import kinds
from crossguard_jax.systems.controls import Constant, HalfBlind
from crossguard_jax.systems.rivals.detector import is_detector
from crossguard_jax.systems.rivals.folders import load_detector
from crossguard_jax.systems.rivals.hidden_detect import HiddenDetect
from crossguard_jax.systems.rivals.rcs import Rcs
from crossguard_jax.systems.system import BaseSystem, System


def load(
    path: str | Path,
    adapter: str | Path | None = None,
    dtype: str | None = "float32",
    *,
    noise_seed: int | None = None,
    **options: Any,
) -> Guard | Immunized | BaseSystem:
    """What a folder is: an immunized guard with its policy, a detector, or a plain guard; or a
    system by its name (`systems.kinds`).

    Example:
        >>> system = load("runs/cmai/model")
        >>> system.score(["kitchen.png"], ["can i touch the red one ?"])[0].rejected

    Args:
        path: the folder, or ``KIND:WHAT``.
        adapter: a PEFT adapter to lay over it; not over an immunized one.
        dtype: of the base's weights and the arithmetic; "auto" is bfloat16 on an accelerator and
            float32 elsewhere, None what the files have.
        noise_seed: in place of the secret that an immunized folder's noise is keyed by; for tests.
        options: of `Guard.from_pretrained`.

    Raises:
        UserError: whatever is wrong with the folder, in one message.
    """
    dtype = default_dtype() if dtype == "auto" else dtype
    kind, what = kinds.parse(str(path))
    if kind in kinds.CONTROLS:
        inner = load(what, adapter, dtype, noise_seed=noise_seed, **options)
        return HalfBlind(inner, kind.removesuffix("_only"), identity(inner))
    if kind and adapter is not None:
        raise UserError(f"{path}: takes no adapter")
    if kind in kinds.CONSTANTS:
        return Constant(kind == "always_unsafe", options.get("threshold"))
    if kind:
        return _load_named(kind, what, dtype, options)
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


def _load_named(kind: str, what: str, dtype: str | None, options: dict[str, Any]) -> BaseSystem:
    """Each is imported when it is asked for: the ``openai`` client and torch take seconds."""
    threshold = options.get("threshold")
    if options.get("prompt") is not None and kind != "answers":
        raise UserError(f"{kind}:{what}: has a prompt of its own; leave --prompt out")
    if kind == "endpoint":
        from crossguard_jax.systems.endpoint import load_endpoint

        return load_endpoint(what, threshold)
    if kind == "answers":
        from crossguard_jax.systems.answers import load_answers

        return load_answers(what, options.get("prompt"), dtype)
    from crossguard_jax.systems.torch_guards import load_torch_guard

    return load_torch_guard(kind, what, dtype, threshold)


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
    if isinstance(system, BaseSystem):
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
