"""The small models: real architectures, as Hub folders that transformers loads.

A folder begins as a skeleton (configuration, tokenizer, processor); weights are put into it by
:func:`crossguard_jax.hf.export.save_model`.
"""

import json
from pathlib import Path
from typing import Any

from crossguard_jax.toy.models.tokenizers import BOS, EOS, IMAGE, PAD, build_tokenizer, vocabulary
from crossguard_jax.toy.world.scenes import SIDE

PATCH = 8
PATCHES = (SIDE // PATCH) ** 2
# Pictures of the world have about this mean and spread, so that normalized ones have unit variance.
MEAN, STD = (0.49, 0.49, 0.49), (0.2, 0.2, 0.2)

NAMES = ("clip", "llava", "rewriter", "safety", "sentence")
"""The shipped models, each a folder of this name."""

_SPECIAL: dict[str, Any] = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
_HEAD = 32  # width of an attention head, everywhere
_CLIP_LENGTH, _TEXT_LENGTH, _LLAVA_LENGTH = 64, 192, 512


def _tower(width: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // _HEAD,
    }


def _vision() -> dict[str, Any]:
    # LLaVA takes the states before the last layer (-2): four of the five layers.
    sizes = {"image_size": SIDE, "patch_size": PATCH, "projection_dim": 128}
    return {**_tower(128, 5), **sizes, "hidden_act": "quick_gelu"}


def _llama(width: int, layers: int, length: int) -> dict[str, Any]:
    return {
        **_tower(width, layers),
        # The usual 8/3 of the width, as three matrices take the place of two.
        "intermediate_size": 8 * width // 3 // 8 * 8,
        "num_key_value_heads": width // _HEAD,
        "head_dim": _HEAD,
        "vocab_size": len(vocabulary()),
        "max_position_embeddings": length,
        "tie_word_embeddings": True,
        **_SPECIAL,
    }


def hub_config(name: str) -> Any:
    """The transformers configuration of one of :data:`NAMES`."""
    from transformers import BertConfig, CLIPConfig, LlamaConfig, LlavaConfig
    from transformers.models.clip import CLIPVisionConfig

    config: Any
    if name == "clip":
        text = {
            **_tower(128, 2),
            "vocab_size": len(vocabulary()),
            "max_position_embeddings": _CLIP_LENGTH,
            "projection_dim": 128,
            **_SPECIAL,
        }
        config = CLIPConfig(text_config=text, vision_config=_vision(), projection_dim=128)
        architecture = "CLIPModel"
    elif name == "llava":
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**_vision()),
            text_config=LlamaConfig(**_llama(128, 4, _LLAVA_LENGTH)),
            image_token_index=IMAGE,
            image_seq_length=PATCHES,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=True,
            **_SPECIAL,
        )
        architecture = "LlavaForConditionalGeneration"
    elif name in ("rewriter", "safety"):
        config = LlamaConfig(**_llama(128, 3, _TEXT_LENGTH))
        architecture = "LlamaForCausalLM"
    else:
        config = BertConfig(
            **_tower(128, 2),
            vocab_size=len(vocabulary()),
            max_position_embeddings=_TEXT_LENGTH,
            pad_token_id=PAD,
        )
        architecture = "BertModel"
    config.architectures = [architecture]
    return config


def write_skeleton(name: str, folder: str | Path) -> None:
    """Writes a model's folder, all but its weights.

    Args:
        name: one of :data:`NAMES`.
        folder: is made; files of the same names are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = hub_config(name)
    config.save_pretrained(folder)
    ends = name in ("clip", "sentence")
    length = {"clip": _CLIP_LENGTH, "llava": _LLAVA_LENGTH}.get(name, _TEXT_LENGTH)
    build_tokenizer(end=ends, max_length=length).save_pretrained(folder)
    if name in ("clip", "llava"):
        _write(folder / "preprocessor_config.json", _picture_processor(name))
    if name == "llava":
        _write(folder / "processor_config.json", _llava_processor())
    if name == "sentence":
        _write_sentence_transformer(folder, config.hidden_size)


def _picture_processor(name: str) -> dict[str, Any]:
    # Pictures are squashed to a square, not cropped: what a crop leaves out no guard sees.
    size = {"height": SIDE, "width": SIDE}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": {"clip": "CLIPProcessor", "llava": "LlavaProcessor"}[name],
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": 3,
        "do_center_crop": False,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def _llava_processor() -> dict[str, Any]:
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": PATCH,
        "num_additional_image_tokens": 1,  # the class token, which the strategy takes away again
        "vision_feature_select_strategy": "default",
    }


def _write_sentence_transformer(folder: Path, width: int) -> None:
    """The files by which sentence-transformers knows the modules behind the encoder."""
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    modules.append(("2", "2_Normalize", "Normalize"))
    _write(
        folder / "modules.json",
        [
            {
                "idx": int(name),
                "name": name,
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for name, path, kind in modules
        ],
    )
    _write(folder / "sentence_bert_config.json", {"max_seq_length": _TEXT_LENGTH})
    for path in ("1_Pooling", "2_Normalize"):
        (folder / path).mkdir(exist_ok=True)
    modes = ("cls_token", "max_tokens", "mean_sqrt_len_tokens")
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    _write(
        folder / "1_Pooling" / "config.json",
        pooling | {f"pooling_mode_{mode}": False for mode in modes},
    )


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
