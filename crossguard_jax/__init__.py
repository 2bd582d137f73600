"""A guard for multimodal models, trained and immunized in JAX.

>>> import crossguard_jax as cg
>>> guard = cg.Guard.from_pretrained("path/to/a/llava/folder")
"""

from typing import Any

__all__ = ["Guard", "Verdict"]


def __getattr__(name: str) -> Any:
    # Lazily, so that the command line's --help does not wait for JAX.
    if name == "Guard":
        from crossguard_jax.guard.guard import Guard

        return Guard
    if name == "Verdict":
        from crossguard_jax.guard.verdict import Verdict

        return Verdict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
