"""Parity with transformers in torch on randomly drawn configurations.

``CROSSGUARD_PARITY_SEED=7`` draws others; the seed of each case is its test's name.
"""

import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from crossguard_jax.hf.load import load_model
from tests.draws import few
from tests.hf import hub_models

BASE = int(os.environ.get("CROSSGUARD_PARITY_SEED", "0"))
TOLERANCE = 1e-4


def seeds(n: int) -> list[int]:
    return [BASE * 1000 + i for i in range(n)]


def ragged(rng: random.Random, batch: int, length: int, left: bool) -> np.ndarray:
    """A padding mask, the longest row full."""
    mask = np.ones((batch, length), np.int64)
    for row in mask[1:]:
        n = rng.randint(0, length // 2)
        row[slice(0, n) if left else slice(length - n, length)] = 0
    return mask


def close(ours: jax.Array, theirs: torch.Tensor, mask: np.ndarray | None = None) -> None:
    a, b = np.asarray(ours), theirs.detach().numpy()
    assert a.shape == b.shape
    if mask is not None:
        a, b = a[mask.astype(bool)], b[mask.astype(bool)]
    assert b.std() > 1e-2, "the reference is constant: the comparison would show nothing"
    assert np.abs(a - b).max() <= TOLERANCE


@pytest.mark.parametrize("seed", few(seeds(24), 1))
def test_llava_logits_equal_transformers(seed, tmp_path):
    rng = random.Random(seed)
    model = hub_models.draw_llava(rng)
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    config, p = ours.config, ours.config.tokens_per_image

    # Three rows: a picture somewhere in the middle, none at all, and two pictures.
    length = 2 * p + 12
    ids = np.array(
        [[rng.randrange(4, config.text.vocab_size - 1) for _ in range(length)] for _ in range(3)]
    )
    start = rng.randint(0, 10)
    ids[0, start : start + p] = config.image_token_id
    ids[2, 2 : 2 + p] = ids[2, p + 5 : 2 * p + 5] = config.image_token_id
    left = rng.random() < 0.5
    mask = np.ones_like(ids)
    mask[1] = ragged(rng, 2, length, left)[1]
    torch.manual_seed(seed)
    size = config.vision.image_size
    pixels = torch.randn(3, 3, size, size)

    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(ids),
            pixel_values=pixels,
            attention_mask=torch.tensor(mask),
        ).logits
    pictures, index = jnp.asarray(pixels.numpy()), jnp.array([[0, 0], [0, 0], [1, 2]])
    whole = jax.jit(lambda ids, mask: ours(ids, pictures, mask, picture_index=index))
    close(whole(ids, mask.astype(bool)), theirs, mask)

    last = ours.last_logits(
        jnp.asarray(ids), pictures, jnp.asarray(mask, bool), picture_index=index
    )
    ends = length - 1 - mask[:, ::-1].argmax(1)
    close(last, theirs[torch.arange(3), torch.tensor(ends)])


@pytest.mark.parametrize("seed", few(seeds(8), 1))
def test_llama_logits_equal_transformers(seed, tmp_path):
    rng = random.Random(seed)
    model = hub_models.draw_causal(rng)
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ids = np.array([[rng.randrange(60) for _ in range(17)] for _ in range(3)])
    mask = ragged(rng, 3, 17, left=rng.random() < 0.5)
    theirs = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits
    close(jax.jit(type(ours).__call__)(ours, ids, mask.astype(bool)), theirs, mask)


@pytest.mark.parametrize("seed", few(seeds(8), 1))
def test_clip_similarities_and_states_equal_transformers(seed, tmp_path):
    rng = random.Random(seed)
    model = hub_models.draw_clip(rng)
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    vocab = ours.config.text.vocab_size
    ids = np.array([[rng.randrange(3, vocab - 1) for _ in range(11)] for _ in range(4)])
    ids[:, 9] = vocab - 1
    mask = ragged(rng, 4, 11, left=False)
    mask[:, :10] = 1
    torch.manual_seed(seed)
    size = ours.config.vision.image_size
    pixels = torch.randn(3, 3, size, size)
    theirs = model(
        input_ids=torch.tensor(ids),
        pixel_values=pixels,
        attention_mask=torch.tensor(mask),
    )
    jids, jmask = jnp.asarray(ids), jnp.asarray(mask, bool)
    close(jax.jit(type(ours).__call__)(ours, jids, pixels.numpy(), jmask), theirs.logits_per_text)
    close(
        ours.text_model(jids, jmask),
        model.text_model(torch.tensor(ids), torch.tensor(mask)).pooler_output,
    )
    close(ours.vision_model(jnp.asarray(pixels.numpy())), model.vision_model(pixels).pooler_output)


@pytest.mark.parametrize("seed", few(seeds(8), 1))
def test_bert_states_and_sentence_vectors_equal_transformers(seed, tmp_path):
    rng = random.Random(seed)
    model = hub_models.draw_bert(rng)
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ids = np.array([[rng.randrange(60) for _ in range(13)] for _ in range(3)])
    mask = ragged(rng, 3, 13, left=False)
    theirs = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    states = theirs.last_hidden_state
    jids, jmask = jnp.asarray(ids), jnp.asarray(mask, bool)
    close(jax.jit(type(ours).__call__)(ours, jids, jmask), states, mask)
    weight = torch.tensor(mask)[..., None]
    close(ours.embed_sentences(jids, jmask), (states * weight).sum(1) / weight.sum(1))
