"""BERT's encoder (arXiv 1810.04805) and mean pooling: Sentence-BERT (arXiv 1908.10084)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray
from crossguard_jax.nn.attention import attention
from crossguard_jax.nn.layers import ACTIVATIONS, Dense, Embed, LayerNorm, run_stack, stack
from crossguard_jax.nn.pins import Pinned


@dataclass(frozen=True)
class BertConfig:
    """The Hub config's fields, by their names there.

    ``normalize`` says whether sentence vectors are unit vectors (sentence-transformers'
    ``modules.json`` decides in a folder).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    normalize: bool = True
    remat: str = "none"
    attention: str = "auto"

    @property
    def longest(self) -> int:
        """The most tokens of a text."""
        return self.max_position_embeddings


class BertLayer(Pinned):
    """A post-norm encoder layer; the names follow the Hub's keys."""

    def __init__(self, config: BertConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 6)
        d, inner = config.hidden_size, config.intermediate_size
        self.query = Dense(d, d, keys[0], ("embed", "heads"))
        self.key = Dense(d, d, keys[1], ("embed", "heads"))
        self.value = Dense(d, d, keys[2], ("embed", "heads"))
        self.attention_output = Dense(d, d, keys[3], ("heads", "embed"))
        self.attention_norm = LayerNorm(d, config.layer_norm_eps)
        self.intermediate = Dense(d, inner, keys[4], ("embed", "mlp"))
        self.output = Dense(inner, d, keys[5], ("mlp", "embed"))
        self.output_norm = LayerNorm(d, config.layer_norm_eps)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Array | None,
        bias: Float[Array, "H L L"] | None = None,
    ) -> Float[Array, "B L D"]:
        heads = (*x.shape[:2], self.config.num_attention_heads, -1)
        q, k, v = (
            self.pins(dense(x).reshape(heads), "batch", "seq", "heads", None)
            for dense in (self.query, self.key, self.value)
        )
        if bias is None:
            out = attention(
                *(q, k, v, mask),
                causal=False,
                implementation=self.config.attention,
                rules=self.pins.rules,
            )
        else:
            out = _biased_attention(q, k, v, mask, bias)
        x = self.attention_norm(x + self.attention_output(out.reshape(x.shape)))
        inner = ACTIVATIONS[self.config.hidden_act](self.intermediate(x))
        return self.output_norm(x + self.output(inner))


def _biased_attention(
    q: Float[Array, "B L H E"],
    k: Float[Array, "B L H E"],
    v: Float[Array, "B L H E"],
    mask: Array | None,
    bias: Float[Array, "H L L"],
) -> Float[Array, "B L H E"]:
    """`nn.attention` with what each head adds to its scores; few kernels would take that."""
    scores = jnp.einsum("blhe,bshe->bhls", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5 + bias
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("bhls,bshe->blhe", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


class Bert(nnx.Module):
    """The encoder."""

    def __init__(self, config: BertConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        d = config.hidden_size
        self.word_embeddings = Embed(config.vocab_size, d, keys[0], ("vocab", "embed"))
        self.position_embeddings = Embed(
            config.max_position_embeddings, d, keys[1], ("seq", "embed")
        )
        self.token_type_embeddings = Embed(config.type_vocab_size, d, keys[2], (None, "embed"))
        self.embedding_norm = LayerNorm(d, config.layer_norm_eps)
        self.layers = stack(lambda k: BertLayer(config, k), keys[3], config.num_hidden_layers)
        self.config = config

    def __call__(
        self, input_ids: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B L D"]:
        """Final states of every token (all of type 0)."""
        x = self.word_embeddings(input_ids) + self.token_type_embeddings.embedding[...][0]
        x = self.embedding_norm(x + self.position_embeddings.embedding[...][: x.shape[1]])
        n, remat = self.config.num_hidden_layers, self.config.remat
        return run_stack(self.layers, n, lambda layer, x: layer(x, mask), x, remat=remat)[0]

    def embed_sentences(
        self, input_ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B D"]:
        """Sentence vectors in float32: the mean over real tokens, of length 1 if ``normalize``."""
        return self.pool(self(input_ids, mask), mask)

    def pool(self, states: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
        """Sentence vectors from the final states; see `embed_sentences`."""
        states, weight = states.astype(jnp.float32), mask[..., None].astype(jnp.float32)
        mean = (states * weight).sum(1) / jnp.maximum(weight.sum(1), 1e-9)
        if not self.config.normalize:
            return mean
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
