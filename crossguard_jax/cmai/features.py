"""h_v and h_t: what the consistency check reads of a picture and of a text."""

import jax.numpy as jnp

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, Int
from crossguard_jax.nn.clip import ClipText, ClipVision
from crossguard_jax.nn.llama import Llama
from crossguard_jax.nn.lora import LoraScale

TEXT_SOURCES = ("clip", "language_model")
"""E_t: the text twin of LLaVA's own picture tower, or the language model on the text alone."""


def picture_features(
    tower: ClipVision,
    pixels: Float[Array, "M C X Y"],
    layers: tuple[int, ...] = (-2,),
    lora_scale: LoraScale = 1.0,
) -> Float[Array, "M D"]:
    """h_v of normalized pixels: `pooled` states of the layers that LLaVA itself reads.

    Layers behind them are not run. On the small world's pairs neither the last layer nor the
    patches' maximum nor all patches side by side tell more, and the class token alone tells less.
    """
    return pooled(jnp.concatenate(tower.hidden_states(pixels, layers, lora_scale), axis=-1))


def pooled(states: Float[Array, "M P D"]) -> Float[Array, "M width"]:
    """The class token beside the mean patch, float32, twice as wide as the states."""
    states = states.astype(jnp.float32)
    return jnp.concatenate([states[:, 0], states[:, 1:].mean(axis=1)], axis=-1)


def text_features(
    source: str,
    model: ClipText | Llama,
    input_ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    lora_scale: LoraScale = 1.0,
) -> Float[Array, "B D"]:
    """h_t of texts, float32.

    Args:
        source: a name in `TEXT_SOURCES`. ``clip`` is pooled at the end-of-text token,
            ``language_model`` at each row's last real token, which has seen all before it.
        model: CLIP's text tower, or LLaVA's language model.
        input_ids: the model's own tokens of the text alone: no picture token among them, since
            h_t must know nothing of the picture.
        mask: False at padding.
        lora_scale: weight of the adapter, per example if an array.

    Raises:
        UserError: another source, or a model of another kind.
    """
    if source not in TEXT_SOURCES:
        raise UserError(f"cmcv.text_source {source!r} is none of {', '.join(TEXT_SOURCES)}")
    if isinstance(model, ClipText) != (source == "clip"):
        raise UserError(f"cmcv.text_source {source!r} does not read a {type(model).__name__}")
    if isinstance(model, ClipText):
        return model(input_ids, mask, lora_scale).astype(jnp.float32)
    last = input_ids.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    states = model.hidden(model.embed_tokens(input_ids), mask, lora_scale, last=last)
    return states[:, 0].astype(jnp.float32)
