"""Sentence encoders: a BERT folder with its tokenizer, as sentence-transformers takes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules
from crossguard_jax.hf import tokens
from crossguard_jax.hf.configs import read_json
from crossguard_jax.hf.load import load_model, resolve_folder
from crossguard_jax.nn.bert import Bert


@dataclass(frozen=True)
class SentenceEncoder:
    """A sentence encoder and what its texts go through.

    Attributes:
        model: its ``embed_sentences`` makes the vectors.
        tokenizer: the folder's.
        max_length: the most tokens of a text; the rest is cut.
        folder: where both come from.
    """

    model: Bert
    tokenizer: Any
    max_length: int
    folder: Path

    def texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """``input_ids`` (int32) and ``attention_mask`` (bool), [B, L], padded on the right."""
        return tokens.encode(self.tokenizer, texts, self.max_length)


def load_sentence(
    folder: str | Path,
    dtype: str | None = "float32",
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
    **options: Any,
) -> SentenceEncoder:
    """A sentence encoder from a Hub folder; ``toy://sentence`` is the small one of the package.

    Args:
        folder, dtype, mesh, rules, options: as in `hf.load.load_model`.

    Raises:
        UserError: whatever is wrong with the folder, or it is not a mean-pooled BERT.
    """
    folder = resolve_folder(folder)
    model = load_model(folder, dtype, mesh, rules, **options)
    if not isinstance(model, Bert):
        raise UserError(f"{folder}: a {type(model).__name__}; a sentence encoder is a BERT here")
    tokenizer = tokens.load_tokenizer(folder)
    tokens.check_fit(tokenizer, model.config.vocab_size, folder)
    longest = model.config.max_position_embeddings
    path = folder / "sentence_bert_config.json"
    settings = read_json(path) if path.is_file() else {}
    limit = settings.get("max_seq_length") or min(tokenizer.model_max_length, longest)
    if not isinstance(limit, int) or limit < 3:
        raise UserError(f"{path}: max_seq_length {limit!r} leaves no room for a text; mend it")
    if settings.get("do_lower_case"):
        _lower(tokenizer)
    return SentenceEncoder(model, tokenizer, min(limit, longest), folder)


def _lower(tokenizer: Any) -> None:
    """Puts lowercasing before all else, as sentence-transformers' own switch does."""
    from tokenizers import normalizers

    core = tokenizer.backend_tokenizer
    lower = normalizers.Lowercase()
    core.normalizer = normalizers.Sequence([lower, core.normalizer] if core.normalizer else [lower])
