"""Texts to the tokens that the consistency check's tower reads."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules
from crossguard_jax.core.typing import Int
from crossguard_jax.guard.batches import windows
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf import tokens
from crossguard_jax.hf.clip import TextTower, load_text_tower


class Placed(NamedTuple):
    """Where a tower goes, if no guard says so."""

    mesh: Mesh | None = None
    rules: Rules = DEFAULT_RULES


class Reader:
    """What h_t is made from: a text's tokens for the tower that the check reads texts with.

    Args:
        guard: whose language model may be the tower; or where another tower goes.
        source: a name in `features.TEXT_SOURCES`.
        path: the CLIP's or its text tower's folder, where that is the source.
        max_length: of a window of a text in tokens, where the language model is the source.

    Raises:
        UserError: an unknown source, or a folder that is no CLIP.
    """

    def __init__(self, guard: Guard | Placed, source: str, path: str, max_length: int):
        self.source = source
        # With the guard's own language model nothing of it is kept twice.
        self.tower: TextTower | None = None
        self.graphdef: Any = None
        self.state: Any = None
        if source == "clip":
            self.tower = load_text_tower(path, mesh=guard.mesh, rules=guard.rules)
            self._tokenizer, self.length = self.tower.tokenizer, self.tower.context
            self.width = self.tower.model.config.hidden_size
            self.graphdef, self.state = nnx.split(self.tower.model, graph=False)
        elif isinstance(guard, Placed):
            raise UserError(f"cmcv.text_source {source!r}: there is no language model; set 'clip'")
        else:
            self._tokenizer, self.length = guard.encoder.tokenizer, max_length
            self.width = guard.model.config.text.hidden_size

    def windows(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """Each text's tokens, in overlapping windows where it is longer than the tower reads, each
        with what the tokenizer puts around a text."""
        if not texts:
            return []
        first, last = tokens.frame(self._tokenizer)
        whole = self._tokenizer([tokens.valid(text) for text in texts])["input_ids"]
        room = self.length - first - last
        out = []
        for ids in whole:
            inner = ids[first : len(ids) - last]
            stretches = windows(len(inner), room)
            out.append([ids[:first] + inner[a:b] + ids[len(ids) - last :] for a, b in stretches])
        return out

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, "B L"], np.ndarray]:
        """Rows of ids, int32, and which are their own, both [B, L] of one length always."""
        return tokens.padded(rows, self.length)
