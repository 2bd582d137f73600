"""A model for the benches of guard and attacks whose sizes say nothing about speed."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from crossguard_jax.bench import base


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """The guard bench's model with the widths of a toy."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    text = LlamaConfig(
        vocab_size=32_064,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32_000)
    path = tmp_path_factory.mktemp("bench") / "base"
    LlavaForConditionalGeneration(config).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def short_texts(monkeypatch):
    monkeypatch.setattr(base, "N_TEXT", 10)
