"""A guard for multimodal models, trained and immunized in JAX.

>>> import crossguard_jax as cg
>>> guard = cg.load("path/to/a/llava/folder")
"""

from typing import Any

__all__ = ["Guard", "Verdict", "explain", "load"]


def __getattr__(name: str) -> Any:
    # Lazily, so that the command line's --help does not wait for JAX.
    if name == "Guard":
        from crossguard_jax.guard.guard import Guard

        return Guard
    if name == "Verdict":
        from crossguard_jax.guard.verdict import Verdict

        return Verdict
    if name == "load":
        from crossguard_jax.systems.load import load

        return load
    if name == "explain":
        from crossguard_jax.systems.why import explain

        return explain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
