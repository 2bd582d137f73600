"""What a guard's verdicts are made from, for whoever keeps them."""

import hashlib
import json
from typing import Any

from crossguard_jax.core import tree
from crossguard_jax.data.prompts import PromptTemplate
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf.load import encoding_hash, folder_hash
from crossguard_jax.nn import lora
from crossguard_jax.runtime import processes


def guard_identity(guard: Guard) -> dict[str, Any]:
    """What a guard's scores depend on beside their input, as JSON values; its place and its
    threshold do not count."""
    adapters = processes.gather(lora.split(guard.model)[1])
    alphas = {p: d.lora.alpha for p, d in lora.dense_layers(guard.model) if d.lora is not None}
    return {
        "weights": folder_hash(guard.folder),
        "encoding": encoding_hash(guard.folder),
        "adapter": f"{tree.digest(adapters)} {json.dumps(alphas)}" if alphas else "",
        "dtype": str(guard.model.language_model.embed_tokens.embedding.dtype),
        "prompt": _prompt_identity(guard.settings.prompt),
        "max_length": guard.settings.max_length,
        "window": guard.settings.window,
        "picture": guard.settings.picture,
    }


def _prompt_identity(prompt: PromptTemplate) -> str:
    return f"{prompt.name} {hashlib.sha256(repr(prompt).encode()).hexdigest()[:16]}"
