"""Tiny random models of the architectures that published guards have, with their processors.

Sizes are the least that the classes take. A model's head is set so that it tells two rows apart:
what a guard says of them is known, and both of its words occur.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

from crossguard_jax.systems.torch_guards import ShieldGemma, TorchFields, TorchGuard
from crossguard_jax.systems.torch_kinds import TORCH_KINDS

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
SURENESS = 3.0  # the logit of a taught row's word against the other one
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if policy is defined %}<policy>{{ policy }}{% endif %}"
    "{% if thinking_type is defined %}<{{ thinking_type }}>{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}STARTuserEND\n\n{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|image|>{% endif %}{% endfor %}"
    "Task: judge the last message. First line 'safe' or 'unsafe'.\n"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}User: {{ c['text'] | trim }}\n"
    "{% endif %}{% endfor %}{% endfor %}EOTSTARTassistantEND"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>user\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start_of_image>{% else %}Policy: {{ c['text'] }}{% endif %}"
    "{% endfor %} Yes or No?<end_of_turn>\n{% endfor %}<start_of_turn>model\n"
)


def llama_template(start: str, end: str, eot: str) -> str:
    return LLAMA.replace("START", start).replace("END", end).replace("EOT", eot)


def tokenizer(special: list[str], **named: Any) -> PreTrainedTokenizerFast:
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    whole.train_from_iterator(["safe unsafe Safe Unsafe Yes No"] * 3, trainer)
    if bos := named.get("bos_token"):  # as Llama's and Gemma's do
        whole.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, whole.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=whole, **named)


TEXT = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}


def llavaguard() -> tuple[Any, Any]:
    words = tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 28], [28, 56], [56, 28]]
        ),
        tokenizer=words,
        video_processor=videos("LlavaOnevisionVideoProcessor"),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=QWEN.replace("IMAGE", "<image>"),
    )
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision | {"vision_use_head": False},
        text_config=TEXT | {"model_type": "qwen2"},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        video_token_id=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[28, 28], [28, 56], [56, 28]],
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def llama_guard_3_vision() -> tuple[Any, Any]:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>"]
    special += ["<|end_header_id|>", "<|image|>", "<|python_tag|>", "<|finetune_right_pad_id|>"]
    words = tokenizer(
        special,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    processor = transformers.MllamaProcessor(
        transformers.MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=2),
        words,
        chat_template=llama_template("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    )
    config = transformers.MllamaConfig(
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
            "intermediate_size": 16,
            "vision_output_dim": 32,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 2,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        text_config=TEXT | {"cross_attention_layers": [1], "rope_parameters": ROPE},
        image_token_index=words.convert_tokens_to_ids("<|image|>"),
        tie_word_embeddings=False,
    )
    model = transformers.MllamaForConditionalGeneration(config)
    for name, weights in model.named_parameters():
        if "gate" in name.rpartition("cross_attn")[2]:  # as it is made, no picture comes through
            torch.nn.init.ones_(weights)
    return model, processor


ROPE = {"rope_type": "default", "rope_theta": 10_000.0}


def llama_guard_4() -> tuple[Any, Any]:
    special = ["<|begin_of_text|>", "<|eot|>", "<|header_start|>", "<|header_end|>", "<|image|>"]
    special += ["<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>"]
    special += ["<|tile_y_separator|>", "<|finetune_right_pad|>"]
    words = tokenizer(
        special,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot|>",
        pad_token="<|finetune_right_pad|>",
    )
    processor = transformers.Llama4Processor(
        Tiles() if not HAS_TORCHVISION else transformers.Llama4ImageProcessor(**Tiles.sizes),
        words,
        patch_size=14,
        chat_template=llama_template("<|header_start|>", "<|header_end|>", "<|eot|>"),
    )
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"intermediate_size": 64, "vision_output_dim": 32, "image_size": 28, "patch_size": 14}
    vision |= {"projector_input_dim": 32, "projector_output_dim": 32, "pixel_shuffle_ratio": 0.5}
    text = TEXT | {"intermediate_size_mlp": 32, "num_local_experts": 2, "moe_layers": []}
    config = transformers.Llama4Config(
        vision_config=vision,
        text_config=text | {"rope_parameters": ROPE, "attention_chunk_size": 512},
        image_token_index=words.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=words.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=words.convert_tokens_to_ids("<|image_end|>"),
        tie_word_embeddings=False,
    )
    return transformers.Llama4ForConditionalGeneration(config), processor


class Tiles:
    """What Llama 4's picture processor makes of small pictures, where there is no torchvision."""

    sizes: Any = {"size": {"height": 28, "width": 28}, "max_patches": 1, "resize_to_max_canvas": 0}
    model_input_names = ("pixel_values",)

    def __call__(self, images: Any, **_: Any) -> dict[str, Any]:
        flat = [image.resize((28, 28)) for image in images]
        pixels = [np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1 for image in flat]
        ratios = torch.ones((len(flat), 2), dtype=torch.long)
        return {"pixel_values": torch.tensor(np.stack(pixels)), "aspect_ratios": ratios}

    def fetch_images(self, images: Any) -> Any:
        return images


def shieldgemma_2() -> tuple[Any, Any]:
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"]
    special += ["<end_of_image>", "<image_soft_token>"]
    marks = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>"}
    words = tokenizer(
        special,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=marks | {"eoi_token": "<end_of_image>"},
    )
    processor = transformers.ShieldGemma2Processor(
        transformers.Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        words,
        chat_template=GEMMA,
        image_seq_length=4,
        policy_definitions={"sharp": "nothing sharp", "hot": "nothing hot"},
    )
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.ShieldGemma2Config(
        vision_config=vision | {"vision_use_head": False},
        text_config=TEXT | {"query_pre_attn_scalar": 8, "sliding_window": 512},
        mm_tokens_per_image=4,
        boi_token_index=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=words.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=words.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=False,
    )
    config.yes_token_index, config.no_token_index = (
        words.encode("Yes", add_special_tokens=False)[0],
        words.encode("No", add_special_tokens=False)[0],
    )
    return transformers.ShieldGemma2ForImageClassification(config), processor


def qwen(version: str) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        new = version == "3"
        marks = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
        marks |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
        words = tokenizer(
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks.values()],
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            extra_special_tokens=marks,
        )
        name = "Qwen3VL" if new else "Qwen2_5_VL"
        processor = getattr(transformers, f"{name}Processor")(
            image_processor=transformers.Qwen2VLImageProcessor(patch_size=16 if new else 14),
            tokenizer=words,
            video_processor=videos(f"{'Qwen3VL' if new else 'Qwen2VL'}VideoProcessor"),
            chat_template=QWEN.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
        )
        vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
        vision |= {"out_hidden_size": 32, "patch_size": 16 if new else 14, "spatial_merge_size": 2}
        vision |= {"temporal_patch_size": 2}
        if new:
            vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
        else:
            vision |= {"fullatt_block_indexes": [0], "window_size": 56}
        rope = ROPE | {"mrope_section": [2, 1, 1]}
        ids = {
            f"{kind}_id": words.convert_tokens_to_ids(token)
            for kind, token in (
                ("image_token", "<|image_pad|>"),
                ("video_token", "<|video_pad|>"),
                ("vision_start_token", "<|vision_start|>"),
                ("vision_end_token", "<|vision_end|>"),
            )
        }
        config = getattr(transformers, f"{name}Config")(
            vision_config=vision,
            text_config=TEXT | {"rope_parameters": rope},
            tie_word_embeddings=False,
            **ids,
        )
        return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor

    return make


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llavaguard": llavaguard,
    "llama_guard_3_vision": llama_guard_3_vision,
    "llama_guard_4": llama_guard_4,
    "shieldgemma_2": shieldgemma_2,
    "qwen_2_5_vl": qwen("2.5"),
    "qwen_3_vl": qwen("3"),
    "singguard": qwen("3"),
}


def videos(name: str) -> Any:
    """A processor of videos, which the classes insist on; none where there is no torchvision."""
    return getattr(transformers, name)() if HAS_TORCHVISION else None


@dataclass
class TinyGuard:
    """A guard, its folder, and what its head was set on."""

    guard: TorchGuard
    folder: Path


def fields(folder: Path, **more: Any) -> TorchFields:
    return TorchFields(model=str(folder), min_pixels=28 * 28, max_pixels=56 * 56, **more)


def build(kind: str, folder: Path) -> TorchGuard:
    """A guard of random weights; its folder has its weights, and its processor where it can."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        if not HAS_TORCHVISION:
            patch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
        model, processor = MAKERS[kind]()
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.15)
    if kind == "llavaguard":
        (folder / "README.md").write_text('policy = """Provide a safety assessment. O1: hate."""')
    model.eval().save_pretrained(folder)
    if processor_is_whole(kind):
        processor.save_pretrained(folder)
    make = ShieldGemma if kind == "shieldgemma_2" else TorchGuard
    return make(TORCH_KINDS[kind], model, processor, fields(folder))


def processor_is_whole(kind: str) -> bool:
    """Whether transformers can read the processor from a folder again."""
    return HAS_TORCHVISION or kind in ("llama_guard_3_vision", "shieldgemma_2")


def teach(guard: TorchGuard, safe: Any, unsafe: Any) -> None:
    """Sets the head so that the label words of two rows (pictures, text) are `SURENESS` apart."""
    states: list[torch.Tensor] = []
    model = getattr(guard.model, "model", None) if isinstance(guard, ShieldGemma) else guard.model
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda _, inputs: states.append(inputs[0][:, -1].double())
    )
    for pictures, text in (safe, unsafe):
        guard.p_unsafe(pictures, text)
    hook.remove()
    signs = [
        torch.full((len(each),), sign).double() for each, sign in zip(states, (-1, 1), strict=True)
    ]
    direction = torch.linalg.pinv(torch.cat(states)) @ torch.cat(signs)
    with torch.no_grad():
        head.weight[list(guard.label_ids)] = (
            torch.stack([-direction / 2, direction / 2]).to(head.weight) * SURENESS
        )
