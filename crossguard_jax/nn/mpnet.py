"""MPNet's encoder (arXiv 2004.09297): BERT's layers under a bias by the distance of two tokens."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray
from crossguard_jax.nn.bert import Bert, BertConfig, BertLayer
from crossguard_jax.nn.layers import Embed, LayerNorm, run_stack, stack

PADDING = 1
"""The id of padding, and its row in the table of positions; a text's begin after it."""

BUCKETS, FARTHEST = 32, 128
"""Distances share so many buckets, both directions together; from the farthest on, the last."""


@dataclass(frozen=True)
class MPNetConfig(BertConfig):
    """BERT's fields; the Hub's config has no token types."""

    relative_attention_num_buckets: int = BUCKETS

    @property
    def longest(self) -> int:
        """The most tokens of a text."""
        return self.max_position_embeddings - PADDING - 1


class MPNet(Bert):
    """The encoder."""

    config: MPNetConfig

    def __init__(self, config: MPNetConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        d, heads = config.hidden_size, config.num_attention_heads
        self.word_embeddings = Embed(config.vocab_size, d, keys[0], ("vocab", "embed"))
        self.position_embeddings = Embed(
            config.max_position_embeddings, d, keys[1], ("seq", "embed")
        )
        self.embedding_norm = LayerNorm(d, config.layer_norm_eps)
        self.relative_attention_bias = Embed(
            config.relative_attention_num_buckets, heads, keys[2], (None, None)
        )
        self.layers = stack(lambda k: BertLayer(config, k), keys[3], config.num_hidden_layers)
        self.config = config

    def __call__(
        self, input_ids: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B L D"]:
        """Final states of every token; one of the id of padding has no position of its own."""
        real = (input_ids != PADDING).astype(jnp.int32)
        positions = jnp.cumsum(real, axis=1) * real + PADDING
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        apart = jnp.asarray(buckets(input_ids.shape[1]))
        bias = self.relative_attention_bias(apart).transpose(2, 0, 1)
        n, remat = self.config.num_hidden_layers, self.config.remat
        return run_stack(
            *(self.layers, n, lambda layer, x: layer(x, mask, bias), self.embedding_norm(x)),
            remat=remat,
        )[0]


def buckets(n: int) -> Int[np.ndarray, "L L"]:
    """The bucket of each pair of a query and a key (transformers' ``relative_position_bucket``).

    Half of them are for keys behind the query; of each half, half are of one distance, the others
    widen with its logarithm.
    """
    distance = np.arange(n) - np.arange(n)[:, None]
    half, near = BUCKETS // 2, BUCKETS // 4
    far = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / near)
    far = near + (far / np.float32(math.log(FARTHEST / near)) * (half - near)).astype(int)
    steps = np.where(np.abs(distance) < near, np.abs(distance), np.minimum(far, half - 1))
    return steps + half * (distance > 0)
