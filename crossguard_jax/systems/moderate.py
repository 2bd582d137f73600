"""GuardBench's one function of a guard, of any system: conversations in, ``p_unsafe`` out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crossguard_jax.guard.guard import raised
from crossguard_jax.systems.system import System

Turn = Mapping[str, Any]
"""``role`` and ``content``: a text, or OpenAI's parts of ``text`` and ``image_url``."""
Moderate = Callable[..., list[float]]


def moderator(system: System, batch_size: int = 16) -> Moderate:
    """What ``guardbench.benchmark(moderate=...)`` takes.

    Example:
        >>> benchmark(moderate=moderator(load("runs/guard")), model_name="ours", batch_size=64)

    Args:
        system: any.
        batch_size: rows to a forward pass, at most.

    Returns:
        A function of conversations, each a list of turns; more than one turn are put to the system
        as one text in which each begins with its role. It raises a UserError where a conversation
        has no verdict: GuardBench has no place for one.
    """

    def moderate(conversations: Sequence[Sequence[Turn]], **_: Any) -> list[float]:
        rows = [_row(turns) for turns in conversations]
        outcomes = system.score_each(
            [images for images, _ in rows], [text for _, text in rows], batch_size=batch_size
        )
        return [verdict.p_unsafe for verdict in raised(outcomes)]

    return moderate


def _row(turns: Sequence[Turn]) -> tuple[list[str], str]:
    """A conversation's pictures and text."""
    images: list[str] = []
    texts: list[str] = []
    for turn in turns:
        parts: Any = turn["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        images += [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        words = "\n".join(part["text"] for part in parts if part["type"] == "text")
        texts.append(words if len(turns) == 1 else f"{turn['role'].capitalize()}: {words}")
    return images, "\n".join(texts)
