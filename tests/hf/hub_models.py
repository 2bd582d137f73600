"""Random Hub models in torch: what the parity tests draw."""

import random
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)


def draw_vision(rng: random.Random) -> CLIPVisionConfig:
    heads = rng.choice([2, 3, 4])
    patch = rng.choice([4, 6, 8])
    return CLIPVisionConfig(
        hidden_size=heads * rng.choice([8, 12]),
        intermediate_size=rng.choice([40, 64]),
        num_hidden_layers=rng.choice([2, 3, 4]),
        num_attention_heads=heads,
        image_size=patch * rng.choice([2, 3, 4]) + rng.choice([0, 0, 1]),
        patch_size=patch,
        hidden_act=rng.choice(["quick_gelu", "gelu"]),
        layer_norm_eps=rng.choice([1e-5, 1e-4]),
    )


def draw_llama(rng: random.Random) -> LlamaConfig:
    kv = rng.choice([1, 2, 3])
    heads = kv * rng.choice([1, 2, 3])
    head_dim = rng.choice([8, 12])
    rope = rng.choice(["default", "linear", "llama3"])
    parameters: dict[str, Any] = {"rope_type": rope, "rope_theta": rng.choice([1e3, 1e4, 5e5])}
    if rope != "default":
        parameters["factor"] = rng.choice([2.0, 8.0])
    if rope == "llama3":
        parameters |= {
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": rng.choice([16, 64, 512]),
        }
    return LlamaConfig(
        vocab_size=rng.choice([61, 96]),
        hidden_size=heads * rng.choice([8, 10]),
        intermediate_size=rng.choice([48, 80]),
        num_hidden_layers=rng.choice([1, 2, 3]),
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=head_dim,
        rms_norm_eps=rng.choice([1e-6, 1e-5, 1e-3]),
        rope_parameters=parameters,
        attention_bias=rng.random() < 0.3,
        mlp_bias=rng.random() < 0.3,
        tie_word_embeddings=rng.random() < 0.5,
        max_position_embeddings=512,
    )


def draw_llava(rng: random.Random) -> LlavaForConditionalGeneration:
    vision, text = draw_vision(rng), draw_llama(rng)
    depth = vision.num_hidden_layers
    # Not 0: transformers takes it for "no hidden states wanted". -depth - 1 is the same state.
    single = rng.choice([i for i in range(-depth - 1, depth + 1) if i])
    layer = rng.choice([-2, -1, single, single, sorted(rng.sample(range(-depth, 0), 2))])
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=rng.choice([3, text.vocab_size - 1]),
        vision_feature_layer=layer,
        vision_feature_select_strategy=rng.choice(["default", "full"]),
        multimodal_projector_bias=rng.random() < 0.7,
        projector_hidden_act=rng.choice(["gelu", "relu"]),
        tie_word_embeddings=text.tie_word_embeddings,
    )
    return randomized(LlavaForConditionalGeneration(config), rng)


def draw_clip(rng: random.Random) -> CLIPModel:
    heads = rng.choice([2, 4])
    vocab = rng.choice([50, 70])
    text = CLIPTextConfig(
        hidden_size=heads * 8,
        intermediate_size=48,
        num_hidden_layers=rng.choice([1, 3]),
        num_attention_heads=heads,
        hidden_act=rng.choice(["quick_gelu", "gelu"]),
        vocab_size=vocab,
        max_position_embeddings=20,
        bos_token_id=0,
        eos_token_id=rng.choice([2, vocab - 1]),
    )
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=draw_vision(rng).to_dict(), projection_dim=24
    )
    return randomized(CLIPModel(config), rng)


def draw_bert(rng: random.Random) -> BertModel:
    heads = rng.choice([2, 3])
    config = BertConfig(
        vocab_size=60,
        hidden_size=heads * 8,
        intermediate_size=40,
        num_hidden_layers=rng.choice([1, 2, 4]),
        num_attention_heads=heads,
        hidden_act=rng.choice(["gelu", "gelu_new", "relu"]),
        max_position_embeddings=32,
    )
    return randomized(BertModel(config), rng)


def draw_causal(rng: random.Random) -> LlamaForCausalLM:
    return randomized(LlamaForCausalLM(draw_llama(rng)), rng)


def randomized(model: Any, rng: random.Random) -> Any:
    """All weights random, norms and biases too, at a scale that keeps activations lively."""
    torch.manual_seed(rng.randrange(2**31))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                p.normal_(0, p[0].numel() ** -0.5)
            elif "norm" in name.lower() and name.endswith("weight"):
                p.uniform_(0.5, 1.5)
            elif name != "logit_scale":
                p.normal_(0, 0.1)
    return model.eval()
