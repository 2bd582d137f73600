"""LLaVA-1.5 (arXiv 2310.03744): a CLIP picture tower, a projector, a Llama."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray
from crossguard_jax.nn.clip import ClipVision, VisionConfig
from crossguard_jax.nn.layers import ACTIVATIONS, Dense
from crossguard_jax.nn.llama import Llama, LlamaConfig
from crossguard_jax.nn.lora import LoraScale
from crossguard_jax.nn.pins import Pinned


@dataclass(frozen=True)
class LlavaConfig:
    """The Hub config's fields, by their names there.

    Attributes:
        vision_feature_layer: hidden state(s) of the tower to use, by transformers' index; several
            are joined along the width.
        vision_feature_select_strategy: "default" drops the class token, "full" keeps it.
        image_token_id: the token a picture's features replace, one token a patch.
    """

    vision: VisionConfig
    text: LlamaConfig
    image_token_id: int = 32000
    vision_feature_layer: tuple[int, ...] = (-2,)
    vision_feature_select_strategy: str = "default"
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True

    @property
    def tokens_per_image(self) -> int:
        """P: how many tokens a picture takes in the sequence."""
        return self.vision.n_patches + (self.vision_feature_select_strategy == "full")


class Projector(nnx.Module):
    """Two dense layers from the tower's width to the language model's."""

    def __init__(self, config: LlavaConfig, key: PRNGKeyArray):
        keys = jax.random.split(key)
        n_in = config.vision.hidden_size * len(config.vision_feature_layer)
        d, bias = config.text.hidden_size, config.multimodal_projector_bias
        self.linear_1 = Dense(n_in, d, keys[0], ("embed", "mlp"), bias=bias)
        self.linear_2 = Dense(d, d, keys[1], ("mlp", "embed"), bias=bias)
        self.act = config.projector_hidden_act

    def __call__(self, x: Array, lora_scale: LoraScale = 1.0) -> Array:
        return self.linear_2(ACTIVATIONS[self.act](self.linear_1(x, lora_scale)), lora_scale)


class Llava(Pinned):
    """The whole model.

    Pictures [M, C, X, Y] come beside the rows that show them: ``picture_index`` [B, I] says which
    ones each row shows, in order. Rows may share a picture, and a row that shows fewer than I has
    any number in the rest. Without it, row i shows picture i."""

    def __init__(self, config: LlavaConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        self.vision_tower = ClipVision(config.vision, keys[0])
        self.multi_modal_projector = Projector(config, keys[1])
        self.language_model = Llama(config.text, keys[2])
        self.config = config

    def see(
        self, pixel_values: Float[Array, "M C X Y"], lora_scale: LoraScale = 1.0
    ) -> Float[Array, "M S W"]:
        """The tower's states of pictures (normalized pixels) that the projector reads, the class
        token first; several layers lie side by side."""
        layers = self.config.vision_feature_layer
        return jnp.concatenate(
            self.vision_tower.hidden_states(pixel_values, layers, lora_scale), axis=-1
        )

    def project(
        self, states: Float[Array, "M S W"], lora_scale: LoraScale = 1.0
    ) -> Float[Array, "M P D"]:
        """The tower's states to the tokens that stand for the pictures."""
        if self.config.vision_feature_select_strategy == "default":
            states = states[:, 1:]
        return self.multi_modal_projector(states, lora_scale)

    def image_features(
        self, pixel_values: Float[Array, "M C X Y"], lora_scale: LoraScale = 1.0
    ) -> Float[Array, "M P D"]:
        """Pictures (normalized pixels) to the tokens that stand for them."""
        return self.project(self.see(pixel_values, lora_scale), lora_scale)

    def embed(
        self,
        input_ids: Int[Array, "B L"],
        pixel_values: Float[Array, "M C X Y"] | None,
        lora_scale: LoraScale = 1.0,
        picture_index: Int[Array, "B I"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Token embeddings with each row's picture tokens replaced by its own pictures' features.

        Rows with and without pictures share a batch; no row can see a picture that its index does
        not name. Rows that share a picture have one ``lora_scale``.
        """
        if pixel_values is None:
            return self.place(input_ids, None)
        tower_scale = jnp.asarray(lora_scale)
        if picture_index is not None and tower_scale.ndim == 1:
            shown = self.shown(input_ids, picture_index.shape[1])
            owner = jnp.where(shown, picture_index, pixel_values.shape[0])
            ones = jnp.ones(pixel_values.shape[0], tower_scale.dtype)
            tower_scale = ones.at[owner].set(tower_scale[:, None], mode="drop")
        features = self.image_features(pixel_values, tower_scale)
        if picture_index is not None:
            features = self.pins.rows(features[picture_index])
        return self.place(input_ids, features.reshape(len(input_ids), -1, features.shape[-1]))

    def shown(self, input_ids: Int[Array, "B L"], slots: int) -> Bool[Array, "B I"]:
        """Which of a row's ``slots`` hold a picture of its own."""
        pictures = (input_ids == self.config.image_token_id).sum(axis=1)
        return jnp.arange(slots) < (pictures // self.config.tokens_per_image)[:, None]

    def place(
        self, input_ids: Int[Array, "B L"], features: Float[Array, "B P D"] | None
    ) -> Float[Array, "B L D"]:
        """Token embeddings with each row's picture tokens replaced by its features, in order."""
        here = input_ids == self.config.image_token_id
        # The picture token may lie outside the vocabulary; its embedding is never used.
        x = self.language_model.embed_tokens(jnp.where(here, 0, input_ids))
        if features is None:
            return x
        index = jnp.clip(jnp.cumsum(here, axis=1) - 1, 0, features.shape[1] - 1)
        placed = self.pins.rows(jnp.take_along_axis(features, index[..., None], axis=1))
        return self.pins.rows(jnp.where(here[..., None], placed.astype(x.dtype), x))

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        pixel_values: Float[Array, "M C X Y"] | None,
        mask: Bool[Array, "B L"] | None = None,
        lora_scale: LoraScale = 1.0,
        picture_index: Int[Array, "B I"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Next-token logits at every position, float32."""
        x = self.embed(input_ids, pixel_values, lora_scale, picture_index)
        return self.language_model.head(self.language_model.hidden(x, mask, lora_scale))

    def last_logits(
        self,
        input_ids: Int[Array, "B L"],
        pixel_values: Float[Array, "M C X Y"] | None,
        mask: Bool[Array, "B L"],
        columns: Int[Array, " V"] | None = None,
        lora_scale: LoraScale = 1.0,
        picture_index: Int[Array, "B I"] | None = None,
    ) -> Float[Array, "B V"]:
        """Logits after each row's last real token, of the given vocabulary ``columns`` alone (None:
        of all)."""
        x = self.embed(input_ids, pixel_values, lora_scale, picture_index)
        return self.read(x, mask, columns, lora_scale)

    def read(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        columns: Int[Array, " V"] | None = None,
        lora_scale: LoraScale = 1.0,
    ) -> Float[Array, "B V"]:
        """`last_logits` of embeddings that `embed` or `place` gave."""
        last = last_positions(mask)
        x = self.language_model.hidden(x, mask, lora_scale, last=last)
        return self.language_model.head(x, columns)[:, 0]

    def read_from(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        start: Int[Array, " B"],
        n: int,
        lora_scale: LoraScale = 1.0,
    ) -> Float[Array, "B N V"]:
        """The logits that predict ``n`` tokens from ``start`` on; the head sees no others.

        Args:
            x: embeddings that `embed` or `place` gave, with the tokens among them.
            mask: False at padding, on the right.
            start: where they begin in each row.
            n: N.
            lora_scale: weight of the adapter.
        """
        states = self.language_model.hidden(x, mask, lora_scale)
        at = jnp.minimum(start[:, None] - 1 + jnp.arange(n), x.shape[1] - 1)
        return self.language_model.head(jnp.take_along_axis(states, at[..., None], axis=1))


def last_positions(mask: Bool[Array, "B L"]) -> Int[Array, " B"]:
    """Each row's last real token."""
    return mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
