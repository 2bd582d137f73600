"""What the rewards are loaded from, checked."""

from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf import tokens
from crossguard_jax.hf.load import encoding_hash, folder_hash, load_model, resolve_folder
from crossguard_jax.impforge.rewards.texts import SafetyEncoder
from crossguard_jax.nn.llama import Llama


def model_hash(folder: Path) -> str:
    """What a folder's model is, and how it reads."""
    return f"{folder_hash(folder)} {encoding_hash(folder)}"


def check_semantic(config: Any) -> None:
    """Raises a `UserError` where the semantic reward's ``kind`` or ``join`` is none."""
    if config.kind not in ("caption", "clip_sum"):
        raise UserError(
            f"rewards.semantic.kind {config.kind!r} is neither 'caption' nor 'clip_sum'"
        )
    try:
        joined = config.join.format(caption="<c>", text="<t>")
    except (KeyError, IndexError, ValueError):
        joined = ""
    if joined.count("<c>") != 1 or joined.count("<t>") != 1:
        raise UserError(
            f"rewards.semantic.join {config.join!r}: write {{caption}} and {{text}} once each"
        )


def load_safety(config: Any, *placed: Any) -> tuple[Llama, SafetyEncoder]:
    """The safety model and what reads texts for it.

    Args:
        config: the ``safety`` part of the rewards'.
        placed: dtype, mesh and rules of `hf.load.load_model`.

    Raises:
        UserError: the folder is no Llama, or a setting does not fit it.
    """
    folder = resolve_folder(config.path)
    model = load_model(folder, *placed)
    if not isinstance(model, Llama):
        raise UserError(f"{config.path}: a {type(model).__name__}; a safety model is a Llama here")
    room = model.config.max_position_embeddings
    return model, SafetyEncoder(
        tokens.load_tokenizer(folder, model.config.vocab_size),
        config.prompt,
        config.answer,
        (config.safe, config.unsafe),
        fitting("rewards.safety.max_length", config.max_length, room),
    )


def fitting(name: str, length: int, room: int) -> int:
    """``length``, which a setting called ``name`` gives.

    Raises:
        UserError: the model takes at most ``room`` tokens.
    """
    if not 0 < length <= room:
        raise UserError(f"{name} {length}: the model takes 1 to {room} tokens")
    return length
