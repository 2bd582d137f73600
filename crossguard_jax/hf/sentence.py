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
from crossguard_jax.hf.folder import check_number, read_object, read_objects
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
        prompt: what the folder puts before every text.
    """

    model: Bert
    tokenizer: Any
    max_length: int
    folder: Path
    prompt: str = ""

    def texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """``input_ids`` (int32) and ``attention_mask`` (bool), [B, L], padded on the right."""
        texts = [self.prompt + text for text in texts]
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
    tokenizer = tokens.load_tokenizer(folder, model.config.vocab_size)
    longest = model.config.max_position_embeddings
    path = folder / "sentence_bert_config.json"
    settings = read_objects(folder, path.name)
    limit, named = settings.get("max_seq_length"), f"{path}: max_seq_length"
    if not limit:
        limit = min(tokenizer.model_max_length, longest)
        named = f"{folder}/tokenizer_config.json: model_max_length"
    check_number(named, limit, 3, whole=True)  # two of them are special
    for field in ("processing_kwargs", "query_length", "document_length", "query_expansion"):
        if settings.get(field):
            raise UserError(f"{path}: {field} is not known here; choose another sentence encoder")
    if settings.get("do_lower_case"):
        _lower(tokenizer)
    return SentenceEncoder(model, tokenizer, min(limit, longest), folder, _prompt(folder))


def _prompt(folder: Path) -> str:
    """What sentence-transformers puts before every text: its default prompt."""
    path = folder / "config_sentence_transformers.json"
    settings = read_objects(folder, path.name)
    if settings.get("truncate_dim"):
        raise UserError(
            f"{path}: truncate_dim {settings['truncate_dim']!r}: vectors are not cut here; choose "
            "another sentence encoder"
        )
    name = settings.get("default_prompt_name")
    if name is None:
        return ""
    prompts = {"query": "", "document": ""} | (settings.get("prompts") or {})
    prompt = prompts.get(name) or ""
    if name not in prompts or not isinstance(prompt, str):
        raise UserError(f"{path}: default_prompt_name {name!r} names no prompt; mend it")
    for pooling in folder.glob("*_Pooling/config.json"):
        if prompt and read_object(pooling).get("include_prompt") is False:
            raise UserError(
                f"{pooling}: include_prompt false leaves the default prompt {name!r} out of the "
                "mean, which is not done here; choose another sentence encoder"
            )
    return prompt


def _lower(tokenizer: Any) -> None:
    """Puts lowercasing before all else, as sentence-transformers' own switch does."""
    from tokenizers import normalizers

    core = tokenizer.backend_tokenizer
    lower = normalizers.Lowercase()
    core.normalizer = normalizers.Sequence([lower, core.normalizer] if core.normalizer else [lower])
