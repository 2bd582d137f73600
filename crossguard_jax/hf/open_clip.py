"""CLIP from open_clip folders (torch) and open_clip_jax parameter trees (flax)."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules
from crossguard_jax.hf import safe_pickle
from crossguard_jax.hf.configs import check_config
from crossguard_jax.hf.folder import check_number, read_object
from crossguard_jax.hf.layouts import OPEN_CLIP, OPEN_CLIP_JAX, PICTURES, TEXTS, Arrays, Renamed
from crossguard_jax.hf.load import build_model
from crossguard_jax.hf.pictures import Preprocess
from crossguard_jax.hf.tensors import open_tensors
from crossguard_jax.nn.clip import Clip, ClipConfig, TextConfig, VisionConfig

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Where the weights may lie, the best place first; a .bin is read if it holds safetensors."""

_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # how torch's pickles begin, new and old

HIGHEST = 2
"""In place of an end-of-text id: the highest id of a row is the end (`nn.clip.TextConfig`)."""


def load_open_clip(
    folder: Path,
    dtype: str | None = "float32",
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
    **options: Any,
) -> tuple[Clip, Preprocess, list[Path]]:
    """A CLIP from an open_clip folder, its pictures' way to pixels, and the files both come from.

    Args:
        folder: ``open_clip_config.json`` and safetensors.
        dtype, mesh, rules, options: as in `hf.load.load_model`.

    Raises:
        UserError: whatever is wrong with the folder, or a model that is not CLIP with two plain
            transformers.
    """
    path = folder / CONFIG
    config, preprocess = read_settings(folder, **options)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(f"{folder}: no weights; download {WEIGHTS[0]} into it")
    with weights.open("rb") as file:
        pickled = file.read(4) in _TORCH
    if pickled:
        raise UserError(
            f"{weights}: a pickle of torch, which is not opened; download {WEIGHTS[0]} beside it"
        )
    source = Renamed(open_tensors(folder, [weights.name]), OPEN_CLIP)
    model = build_model("clip", config, source, str(weights), dtype, mesh, rules)
    assert isinstance(model, Clip)
    return model, preprocess, [path, weights]


def read_settings(folder: Path, **options: Any) -> tuple[ClipConfig, Preprocess]:
    """What a folder's ``open_clip_config.json`` says of the model and of its pictures.

    Raises:
        UserError: it is no model's, or one's that is not run here.
    """
    path = folder / CONFIG
    whole = read_object(path)
    try:
        config = _config(whole["model_cfg"], options)
        check_config(config)
        preprocess = _preprocess(whole.get("preprocess_cfg") or {}, config.vision.image_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: not a model's settings ({error!r}); download it again") from error
    return config, preprocess


def load_open_clip_jax(
    path: Path,
    dtype: str | None = "float32",
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
    **options: Any,
) -> tuple[Clip, Preprocess, list[Path]]:
    """A CLIP from an open_clip_jax parameter tree, as `load_open_clip`.

    The tree says all there is to say but for what that library always does: gelu, an epsilon of
    1e-5, and a temperature of 1/100 where none was trained. Its published trees were made from
    open_clip's weights, and their pictures take open_clip's way.

    Args:
        path: the pickle.
        dtype, mesh, rules, options: as in `hf.load.load_model`.

    Raises:
        UserError: the pickle wants more than arrays, or is not the tree of a CLIP with two plain
            transformers.
    """
    arrays = dict(_flat(safe_pickle.load(path)))
    arrays.setdefault("params/temp", np.asarray(math.log(100), np.float32))
    try:
        config = _tree_config(arrays, options)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}: not open_clip_jax's tree of a CLIP with two transformers ({error!r})"
        ) from error
    source = Renamed(Arrays(arrays), OPEN_CLIP_JAX)
    model = build_model("clip", config, source, str(path), dtype, mesh, rules)
    assert isinstance(model, Clip)
    return model, Preprocess(config.vision.image_size), [path]


# Settings that a model may have without a difference to its embeddings, and the values that the
# arithmetic here stands for.
_WITHOUT_EFFECT = {
    *("patch_dropout", "output_tokens", "final_ln_after_pool", "attn_pooler_queries"),
    *("attn_pooler_heads", "pad_id", "eos_id", "hf_tokenizer_name"),
}
_MEANT = {
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable", "sin_cos_2d"),
    "proj_type": ("linear",),
    "block_type": ("default",),
}
_TOWER = ("width", "layers", "mlp_ratio", "act_kwargs", "norm_kwargs")


def _config(settings: dict[str, Any], options: dict[str, Any]) -> ClipConfig:
    """Of ``model_cfg``; what it leaves out is open_clip's default."""
    vision = {"layers": 12, "width": 768, "head_width": 64, "patch_size": 16, "image_size": 224}
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    vision |= settings["vision_cfg"]
    text |= settings["text_cfg"]
    if settings.get("multimodal_cfg"):
        raise UserError("multimodal_cfg: CoCa is not run, only CLIP")
    _check("vision_cfg", vision, (*_TOWER, "head_width", "patch_size", "image_size"))
    _check("text_cfg", text, (*_TOWER, "heads", "context_length", "vocab_size"))
    for section, part, name in (("vision", vision, "head_width"), ("text", text, "heads")):
        if part["width"] % part[name]:
            raise UserError(f"{section}_cfg.{name} {part[name]} does not divide {part['width']}")
    quick = bool(settings.get("quick_gelu"))
    return ClipConfig(
        vision=VisionConfig(
            **_tower(vision, vision["width"] // vision["head_width"], quick, options),
            image_size=_side(vision, "image_size"),
            patch_size=_side(vision, "patch_size"),
        ),
        text=TextConfig(
            **_tower(text, text["heads"], quick, options),
            vocab_size=text["vocab_size"],
            max_position_embeddings=text["context_length"],
            eos_token_id=HIGHEST,
        ),
        projection_dim=settings["embed_dim"],
    )


def _check(section: str, settings: dict[str, Any], supported: tuple[str, ...]) -> None:
    for name, value in settings.items():
        harmless = name in supported or name in _WITHOUT_EFFECT or not value
        if not harmless and value not in _MEANT.get(name, ()):
            raise UserError(f"{section}.{name} {value!r}: such a model is not run here")
    if not isinstance(settings["layers"], int):
        raise UserError(f"{section}.layers {settings['layers']!r}: only transformers are run")


def _tower(
    settings: dict[str, Any], heads: int, quick: bool, options: dict[str, Any]
) -> dict[str, Any]:
    approximate = (settings.get("act_kwargs") or {}).get("approximate", "none")
    return dict(
        hidden_size=settings["width"],
        intermediate_size=int(settings["width"] * settings.get("mlp_ratio", 4.0)),
        num_hidden_layers=settings["layers"],
        num_attention_heads=heads,
        hidden_act="quick_gelu" if quick else _GELUS[approximate],
        layer_norm_eps=(settings.get("norm_kwargs") or {}).get("eps", 1e-5),
        **options,
    )


_GELUS = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}


def _side(settings: dict[str, Any], name: str) -> int:
    value = settings[name]
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) != 1:
        raise UserError(f"vision_cfg.{name} {value!r}: only squares are run")
    return sides.pop()


def _preprocess(settings: dict[str, Any], size: int) -> Preprocess:
    choices = {
        "interpolation": ("bicubic", "bilinear"),
        "resize_mode": ("shortest", "longest", "squash"),
        "mode": ("RGB",),
    }
    given = {k: v for k, v in settings.items() if v is not None}
    for name, values in choices.items():
        if given.get(name, values[0]) not in values:
            raise UserError(f"preprocess_cfg.{name} {given[name]!r} is none of {', '.join(values)}")
    colours: dict[str, Any] = {}
    for name in ("mean", "std"):
        if name in given:
            value = given[name]
            colours[name] = tuple(map(float, value if isinstance(value, list) else [value] * 3))
            if len(colours[name]) != 3:
                raise UserError(f"preprocess_cfg.{name} {value!r}: three channels are wanted")
            for number in colours[name]:
                check_number(f"preprocess_cfg.{name}", number, 0, above=name == "std")
    rest = ("interpolation", "resize_mode", "fill_color")
    return Preprocess(size, **colours, **{k: given[k] for k in rest if k in given})


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{path}/{key}" if path else str(key))
    else:
        yield path, np.asarray(tree)


def _tree_config(arrays: dict[str, np.ndarray], options: dict[str, Any]) -> ClipConfig:
    patch, _, _, _ = arrays[f"{PICTURES}/PatchEmbed_0/Conv_0/kernel"].shape
    positions, _ = arrays[f"{PICTURES}/PosEmbed_0/pos_embed"].shape
    vocab_size, _ = arrays[f"{TEXTS}/Embed_0/embedding"].shape
    context, _ = arrays[f"{TEXTS}/PosEmbed_0/pos_embed"].shape
    _, projection = arrays["params/Dense_0/kernel"].shape
    side = math.isqrt(positions - 1)
    return ClipConfig(
        vision=VisionConfig(
            **_tree_tower(arrays, PICTURES, options), image_size=side * patch, patch_size=patch
        ),
        text=TextConfig(
            **_tree_tower(arrays, TEXTS, options),
            vocab_size=vocab_size,
            max_position_embeddings=context,
            eos_token_id=HIGHEST,
        ),
        projection_dim=projection,
    )


def _tree_tower(
    arrays: dict[str, np.ndarray], tower: str, options: dict[str, Any]
) -> dict[str, Any]:
    pattern = rf"{tower}/Transformer_0/(\w+_\d+)/MultiHeadAttention_0/query/kernel"
    queries = [key for key in arrays if re.fullmatch(pattern, key)]
    if not queries:
        raise ValueError(f"no {pattern}")
    width, heads, _ = arrays[queries[0]].shape
    _, inner = arrays[queries[0].replace("MultiHeadAttention_0/query", "MLP_0/Dense_0")].shape
    return dict(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len(queries),
        num_attention_heads=heads,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        **options,
    )
