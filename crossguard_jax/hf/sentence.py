"""Sentence encoders: a BERT or MPNet folder with its tokenizer, as sentence-transformers has it."""

from collections.abc import Mapping, Sequence
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
        prompts: what the folder puts before a text, by the text's task: "query", "document", or
            "" for a text that is neither.
    """

    model: Bert
    tokenizer: Any
    max_length: int
    folder: Path
    prompts: Mapping[str, str]

    def texts(self, texts: Sequence[str], task: str = "") -> dict[str, np.ndarray]:
        """``input_ids`` (int32) and ``attention_mask`` (bool), [B, L], padded on the right.

        Args:
            texts: what to read.
            task: a key of `prompts`; as sentence-transformers' ``encode``, ``encode_query`` and
                ``encode_document``.

        Raises:
            UserError: the task's prompt would be left out of the mean.
        """
        if task not in self.prompts:
            raise UserError(
                f"{self.folder}: include_prompt false leaves the prompt {task!r} out of the mean, "
                "which is not done here; choose another sentence encoder"
            )
        texts = [self.prompts[task] + text for text in texts]
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
        UserError: whatever is wrong with the folder, or it is not a mean-pooled BERT or MPNet.
    """
    folder = resolve_folder(folder)
    model = load_model(folder, dtype, mesh, rules, **options)
    if not isinstance(model, Bert):
        raise UserError(
            f"{folder}: a {type(model).__name__}; a sentence encoder is a BERT or an MPNet here"
        )
    tokenizer = tokens.load_tokenizer(folder, model.config.vocab_size)
    longest = model.config.longest
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
    return SentenceEncoder(model, tokenizer, min(limit, longest), folder, _prompts(folder))


def _prompts(folder: Path) -> dict[str, str]:
    """What sentence-transformers puts before texts, by task: its default prompt before those of
    none; queries and documents have their own, and never fall back on the default."""
    path = folder / "config_sentence_transformers.json"
    settings = read_objects(folder, path.name)
    if settings.get("truncate_dim"):
        raise UserError(
            f"{path}: truncate_dim {settings['truncate_dim']!r}: vectors are not cut here; choose "
            "another sentence encoder"
        )
    named = {"query": "", "document": ""} | (settings.get("prompts") or {})
    default = settings.get("default_prompt_name")
    usable = default is None or default in named and isinstance(named[default] or "", str)
    if not usable:
        raise UserError(f"{path}: default_prompt_name {default!r} names no prompt; mend it")
    names = {"": default, "query": "query", "document": "document"}
    prompts = {task: named.get(name) or "" for task, name in names.items()}
    for task, prompt in prompts.items():
        if not isinstance(prompt, str):
            raise UserError(f"{path}: the prompt {task!r} is {prompt!r}, no text; mend it")
    for pooling in folder.glob("*_Pooling/config.json"):
        if any(prompts.values()) and read_object(pooling).get("include_prompt") is False:
            if prompts[""]:
                raise UserError(
                    f"{pooling}: include_prompt false leaves the default prompt {default!r} out"
                    " of the mean, which is not done here; choose another sentence encoder"
                )
            prompts = {task: prompt for task, prompt in prompts.items() if not prompt}
    return prompts


def _lower(tokenizer: Any) -> None:
    """Puts lowercasing before all else, as sentence-transformers' own switch does."""
    from tokenizers import normalizers

    core = tokenizer.backend_tokenizer
    lower = normalizers.Lowercase()
    core.normalizer = normalizers.Sequence([lower, core.normalizer] if core.normalizer else [lower])
