"""CLIP's two towers (arXiv 2103.00020), after transformers' ``modeling_clip``."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray
from crossguard_jax.nn.attention import attention
from crossguard_jax.nn.layers import ACTIVATIONS, Dense, Embed, LayerNorm, Linear, run_stack, stack
from crossguard_jax.nn.lora import LoraScale
from crossguard_jax.nn.pins import Pinned


@dataclass(frozen=True)
class TowerConfig:
    """What both towers share; the names are the Hub config's."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    remat: str = "none"
    attention: str = "auto"


@dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """The picture tower: square pictures of ``image_size`` pixels in ``patch_size`` patches."""

    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3

    @property
    def n_patches(self) -> int:
        """P, without the class token."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig(TowerConfig):
    """The text tower. ``eos_token_id`` 2 is the old configs' way to say "the highest id"."""

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407


@dataclass(frozen=True)
class ClipConfig:
    """Both towers and the width they are projected to."""

    vision: VisionConfig
    text: TextConfig
    projection_dim: int = 512

    @property
    def vision_feature_layer(self) -> tuple[int, ...]:
        """The layers that `Clip.see` gives, by the name that a LLaVA's config has for its own."""
        return (-1,)


class ClipAttention(Pinned):
    """Multi-head attention with biases on all four projections."""

    def __init__(self, config: TowerConfig, key: PRNGKeyArray):
        d = config.hidden_size
        keys = jax.random.split(key, 4)
        self.q_proj = Dense(d, d, keys[0], ("embed", "heads"))
        self.k_proj = Dense(d, d, keys[1], ("embed", "heads"))
        self.v_proj = Dense(d, d, keys[2], ("embed", "heads"))
        self.out_proj = Dense(d, d, keys[3], ("heads", "embed"))
        self.n_heads = config.num_attention_heads
        self.implementation = config.attention

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L"] | None,
        causal: bool,
        lora_scale: LoraScale,
    ) -> Float[Array, "B L D"]:
        heads = (*x.shape[:2], self.n_heads, -1)
        q, k, v = (
            self.pins(dense(x, lora_scale).reshape(heads), "batch", "seq", "heads", None)
            for dense in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = attention(
            *(q, k, v, mask),
            causal=causal,
            implementation=self.implementation,
            rules=self.pins.rules,
        )
        return self.out_proj(out.reshape(x.shape), lora_scale)


class ClipMlp(nnx.Module):
    """Two dense layers with an activation between."""

    def __init__(self, config: TowerConfig, key: PRNGKeyArray):
        keys = jax.random.split(key)
        self.fc1 = Dense(config.hidden_size, config.intermediate_size, keys[0], ("embed", "mlp"))
        self.fc2 = Dense(config.intermediate_size, config.hidden_size, keys[1], ("mlp", "embed"))
        self.act = config.hidden_act

    def __call__(self, x: Array, lora_scale: LoraScale) -> Array:
        return self.fc2(ACTIVATIONS[self.act](self.fc1(x, lora_scale)), lora_scale)


class ClipLayer(Pinned):
    """A pre-norm transformer layer."""

    def __init__(self, config: TowerConfig, key: PRNGKeyArray):
        keys = jax.random.split(key)
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = ClipAttention(config, keys[0])
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = ClipMlp(config, keys[1])

    def __call__(self, x: Array, mask: Array | None, causal: bool, lora_scale: LoraScale) -> Array:
        x = x + self.self_attn(self.layer_norm1(x), mask, causal, lora_scale)
        return x + self.mlp(self.layer_norm2(x), lora_scale)


class ClipVision(Pinned):
    """The picture tower."""

    def __init__(self, config: VisionConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        d = config.hidden_size
        n_pixels = config.num_channels * config.patch_size**2
        self.class_embedding = nnx.Param(jax.random.normal(keys[0], (d,)) * 0.02, axes=("embed",))
        self.patch_embedding = Linear(n_pixels, d, keys[1], ("patch", "embed"), bias=False)
        self.position_embedding = Embed(config.n_patches + 1, d, keys[2], ("seq", "embed"))
        self.pre_layrnorm = LayerNorm(d, config.layer_norm_eps)  # the Hub's spelling
        self.layers = stack(lambda k: ClipLayer(config, k), keys[3], config.num_hidden_layers)
        self.post_layernorm = LayerNorm(d, config.layer_norm_eps)
        self.config = config

    def embed(self, pixels: Float[Array, "M C X Y"]) -> Float[Array, "M P D"]:
        """Normalized pixels to the input of the first layer, the class token first."""
        m, c, height, width = pixels.shape
        p = self.config.patch_size
        # A convolution whose stride is its kernel is one matrix product over patches; remainders
        # of a side that p does not divide are dropped, as the convolution drops them.
        x = pixels[:, :, : height // p * p, : width // p * p]
        x = x.reshape(m, c, height // p, p, width // p, p).transpose(0, 2, 4, 1, 3, 5)
        dtype = self.patch_embedding.kernel.dtype
        x = self.patch_embedding(self.pins.rows(x.reshape(m, -1, c * p * p).astype(dtype)))
        cls = jnp.broadcast_to(self.class_embedding[...].astype(dtype), (m, 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=1) + self.position_embedding.embedding[...]
        return self.pre_layrnorm(x)

    def hidden_states(
        self,
        pixels: Float[Array, "M C X Y"],
        layers: tuple[int, ...],
        lora_scale: LoraScale = 1.0,
    ) -> list[Float[Array, "M P D"]]:
        """Hidden states by transformers' index: 0 is the first layer's input, -1 the last output.

        Layers behind the highest index asked for are not run.
        """
        total = self.config.num_hidden_layers
        indices = [i % (total + 1) for i in layers]
        x = self.embed(pixels)
        y, every = run_stack(
            self.layers,
            max(indices),
            lambda layer, x: layer(x, None, False, lora_scale),
            x,
            remat=self.config.remat,
            collect=len(set(indices)) > 1,
        )
        if every is None:
            return [y for _ in indices]
        return [x if i == 0 else every[i - 1] for i in indices]

    def __call__(
        self, pixels: Float[Array, "M C X Y"], lora_scale: LoraScale = 1.0
    ) -> Float[Array, "M D"]:
        """The pooled (class) token after the last norm."""
        (x,) = self.hidden_states(pixels, (-1,), lora_scale)
        return self.post_layernorm(x[:, 0])


class ClipText(nnx.Module):
    """The text tower: causal, pooled at the end-of-text token."""

    def __init__(self, config: TextConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        d = config.hidden_size
        self.token_embedding = Embed(config.vocab_size, d, keys[0], ("vocab", "embed"))
        self.position_embedding = Embed(
            config.max_position_embeddings, d, keys[1], ("seq", "embed")
        )
        self.layers = stack(lambda k: ClipLayer(config, k), keys[2], config.num_hidden_layers)
        self.final_layer_norm = LayerNorm(d, config.layer_norm_eps)
        self.config = config

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"] | None = None,
        lora_scale: LoraScale = 1.0,
        shift: Float[Array, "B L D"] | float = 0.0,
    ) -> Float[Array, "B D"]:
        """The final state at the end-of-text token; ``shift`` is added to the embeddings."""
        x = self.token_embedding(input_ids)
        x = x + jnp.asarray(shift, x.dtype)
        x = x + self.position_embedding.embedding[...][: x.shape[1]]
        x, _ = run_stack(
            self.layers,
            self.config.num_hidden_layers,
            lambda layer, x: layer(x, mask, True, lora_scale),
            x,
            remat=self.config.remat,
        )
        x = self.final_layer_norm(x)
        eos = self.config.eos_token_id
        ends = jnp.argmax(input_ids if eos == 2 else input_ids == eos, axis=-1)
        return jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0]


class Clip(nnx.Module):
    """Both towers with their projections into the shared space."""

    def __init__(self, config: ClipConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        width = config.projection_dim
        self.vision_model = ClipVision(config.vision, keys[0])
        self.text_model = ClipText(config.text, keys[1])
        self.visual_projection = Linear(
            config.vision.hidden_size, width, keys[2], ("embed", None), bias=False
        )
        self.text_projection = Linear(
            config.text.hidden_size, width, keys[3], ("embed", None), bias=False
        )
        self.logit_scale = nnx.Param(jnp.asarray(2.6592), axes=())
        self.config = config

    def see(
        self, pixel_values: Float[Array, "M C X Y"], lora_scale: LoraScale = 1.0
    ) -> Float[Array, "M S D"]:
        """The picture tower's last states of normalized pixels, the class token first."""
        (states,) = self.vision_model.hidden_states(pixel_values, (-1,), lora_scale)
        return states

    def picture_vectors(self, states: Float[Array, "M S W"]) -> Float[Array, "M D"]:
        """Unit vectors, float32, of what `see` gives."""
        pooled = self.vision_model.post_layernorm(states[:, 0])
        return _unit(self.visual_projection(pooled))

    def embed_pictures(self, pixels: Float[Array, "M C X Y"]) -> Float[Array, "M D"]:
        """Unit vectors of pictures, float32."""
        return self.picture_vectors(self.see(pixels))

    def embed_texts(
        self,
        input_ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"] | None = None,
        lora_scale: LoraScale = 1.0,
        shift: Float[Array, "B L D"] | float = 0.0,
    ) -> Float[Array, "B D"]:
        """Unit vectors of texts, float32; ``shift`` is added to the tokens' embeddings."""
        return _unit(self.text_projection(self.text_model(input_ids, mask, lora_scale, shift)))

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        pixels: Float[Array, "M C X Y"],
        mask: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B M"]:
        """Scaled cosines, text by picture: transformers' ``logits_per_text``."""
        scale = jnp.exp(self.logit_scale[...].astype(jnp.float32))
        return scale * self.embed_texts(input_ids, mask) @ self.embed_pictures(pixels).T


def _unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
