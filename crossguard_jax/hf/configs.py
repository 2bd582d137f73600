"""A Hub folder's ``config.json`` as this package's frozen configs.

transformers' own config classes fill in what the file leaves out, so a default that is theirs is
ours.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, reason
from crossguard_jax.hf.folder import CONFIG, check_number, read_json, read_object
from crossguard_jax.nn import bert, clip, llama, llava, mpnet
from crossguard_jax.nn.attention import IMPLEMENTATIONS
from crossguard_jax.nn.layers import ACTIVATIONS, REMAT_POLICIES

Model = llava.Llava | llama.Llama | clip.Clip | clip.ClipText | clip.ClipVision | bert.Bert
Config = (
    llava.LlavaConfig
    | llama.LlamaConfig
    | clip.ClipConfig
    | clip.TextConfig
    | clip.VisionConfig
    | bert.BertConfig
)

MODELS: dict[str, Any] = {
    "llava": llava.Llava,
    "llama": llama.Llama,
    "clip": clip.Clip,
    "clip_text_model": clip.ClipText,
    "clip_vision_model": clip.ClipVision,
    "bert": bert.Bert,
    "mpnet": mpnet.MPNet,
}
"""The module class of each family; a family is a Hub ``model_type``."""


def read_config(folder: str | Path, **options: Any) -> tuple[str, Config]:
    """``(family, config)`` of a Hub folder.

    Args:
        folder: holds ``config.json``.
        options: ``remat`` and ``attention`` for every tower.

    Raises:
        UserError: no such file, not a model this package runs, or a setting it does not know.
    """
    from transformers import AutoConfig

    _check(options)
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: not found; give a folder with config.json and *.safetensors")
    _check_sections(path)
    try:
        hub: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever its own checks of the fields raise
        raise UserError(f"{path}: transformers cannot read it: {reason(error)}") from error
    family, config = from_hub(hub, str(path), **options)
    if isinstance(config, bert.BertConfig):
        config = replace(config, normalize=read_normalize(folder))
    return family, config


def _check_sections(path: Path) -> None:
    """What transformers would not say, or not by its name."""
    whole = read_object(path)
    sections = {f"{name}.": whole.get(name) for name in ("text_config", "vision_config")}
    for name, part in {"": whole, **sections}.items():
        part = part if isinstance(part, dict) else {}
        for field in ("quantization_config", "compression_config"):
            if part.get(field):
                raise UserError(
                    f"{path}: {name}{field}: quantized weights are not computed here; give the "
                    "unquantized model"
                )
        for field in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
            if field in part:
                check_number(f"{path}: {name}{field}", part[field], 1, whole=True)


def read_normalize(folder: str | Path) -> bool:
    """Whether a sentence encoder's vectors are unit vectors, from sentence-transformers' files.

    A folder without ``modules.json`` is mean-pooled and not normalized, as sentence-transformers
    takes it.

    Raises:
        UserError: the sentence vector is made in another way than by the mean over all tokens.
    """
    path = Path(folder) / "modules.json"
    if not path.is_file():
        return False
    modules = read_json(path)
    try:
        # The package that a class lives in has changed between generations; its name has not.
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        places = [Path(folder) / module["path"] for module in modules]
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a list of modules ({error!r}); download it again") from error
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{path}: the modules {', '.join(kinds)}; only Transformer, Pooling and Normalize, in "
            "this order, are run: choose another sentence encoder"
        )
    if places[0] != Path(folder):
        raise UserError(f"{path}: the encoder lies in {places[0]}; move its files to {folder}")
    _check_pooling(places[1] / "config.json")
    return len(kinds) == 3


def _check_pooling(path: Path) -> None:
    pooling = read_object(path)
    prefix = "pooling_mode_"  # older files have a key for each mode, newer ones a list or a name
    modes = pooling.get("pooling_mode") or [
        key.removeprefix(prefix) for key in pooling if key.startswith(prefix) and pooling[key]
    ]
    modes = [modes] if isinstance(modes, str) else modes
    if modes not in ([], ["mean"], ["mean_tokens"]):  # without any, it is the mean
        raise UserError(
            f"{path}: pooling by {', '.join(modes)}; only the mean over tokens is known: choose "
            "another sentence encoder"
        )


def _check(options: dict[str, Any]) -> None:
    choices = {"remat": list(REMAT_POLICIES), "attention": ["auto", *IMPLEMENTATIONS]}
    for name, value in options.items():
        if value not in choices[name]:
            raise UserError(f"{name} {value!r} is none of {', '.join(choices[name])}")


def from_hub(hub: Any, where: str = "config", **options: Any) -> tuple[str, Config]:
    """``(family, config)`` of a transformers config object."""
    readers: dict[str, Callable[[Any, dict[str, Any]], Config]]
    readers = {
        "llava": _llava,
        "llama": _llama,
        "clip": _clip,
        "clip_text_model": _clip_text,
        "clip_vision_model": _vision,
        "bert": _bert,
        "mpnet": _mpnet,
    }
    if hub.model_type not in readers:
        families = ", ".join(readers)
        raise UserError(f"{where}: model_type {hub.model_type!r} is none of {families}")
    try:
        config = readers[hub.model_type](hub, options)
        check_config(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return hub.model_type, config


_HUB_NAMES = {"image_token_id": "image_token_index"}


def check_config(config: Any, section: str = "") -> None:
    """Refuses numbers of a config (and its towers') that no model can have.

    Raises:
        UserError: the message names the Hub's field.
    """
    for field in fields(config):
        name, value = section + _HUB_NAMES.get(field.name, field.name), getattr(config, field.name)
        if field.name in ("vision", "text"):
            check_config(value, f"{field.name}_config.")
        elif isinstance(value, llama.RopeScaling):
            check_config(value, f"{section}rope_parameters.")
        elif field.type is int:
            check_number(name, value, 0 if "_token_" in name else 1, whole=True)
        elif field.type is float:
            check_number(name, value, 0, above=not name.endswith("_eps"))
    _check_shapes(config, section)


def _check_shapes(config: Any, section: str) -> None:
    def divides(small: str, large: str) -> None:
        parts, whole = getattr(config, small), getattr(config, large)
        if whole % parts:
            raise UserError(f"{section}{small} {parts} does not divide {large} {whole}; mend it")

    if isinstance(config, llama.LlamaConfig):
        divides("num_key_value_heads", "num_attention_heads")
        if config.head_dim % 2:
            raise UserError(f"{section}head_dim {config.head_dim} is odd; positions turn pairs")
    elif hasattr(config, "num_attention_heads"):
        divides("num_attention_heads", "hidden_size")
    if isinstance(config, clip.VisionConfig) and config.patch_size > config.image_size:
        raise UserError(
            f"{section}patch_size {config.patch_size} is above image_size {config.image_size}"
        )
    if isinstance(config, llama.RopeScaling) and config.high_freq_factor <= config.low_freq_factor:
        raise UserError(f"{section}high_freq_factor is not above low_freq_factor; mend it")
    if isinstance(config, llava.LlavaConfig):
        deepest = config.vision.num_hidden_layers
        for layer in config.vision_feature_layer or (None,):
            check_number("vision_feature_layer", layer, -deepest - 1, deepest, whole=True)


def _tower(hub: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The fields that every tower shares."""
    return dict(
        hidden_size=hub.hidden_size,
        intermediate_size=hub.intermediate_size,
        num_hidden_layers=hub.num_hidden_layers,
        num_attention_heads=hub.num_attention_heads,
        hidden_act=_activation(hub.hidden_act),
        **options,
    )


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise UserError(f"activation {name!r} is none of {', '.join(ACTIVATIONS)}")
    return name


def _vision(hub: Any, options: dict[str, Any]) -> clip.VisionConfig:
    if hub.model_type != "clip_vision_model":
        raise UserError(f"vision_config.model_type {hub.model_type!r}: only CLIP's tower is known")
    for field in ("image_size", "patch_size"):  # transformers takes a list of two sides
        check_number(f"vision_config.{field}", getattr(hub, field), 1, whole=True)
    return clip.VisionConfig(
        **_tower(hub, options),
        layer_norm_eps=hub.layer_norm_eps,
        image_size=hub.image_size,
        patch_size=hub.patch_size,
        num_channels=hub.num_channels,
    )


# What transformers' llama3 scaling cannot do without, and of what type each is.
_LLAMA3 = {
    "factor": float,
    "low_freq_factor": float,
    "high_freq_factor": float,
    "original_max_position_embeddings": int,
}


def _llama(hub: Any, options: dict[str, Any], tied: bool | None = None) -> llama.LlamaConfig:
    if hub.model_type != "llama":
        raise UserError(f"text_config.model_type {hub.model_type!r}: only Llama is known")
    rope = dict(hub.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"rope_type {kind!r} is none of default, linear, llama3")
    given = {"rope_theta": 10000.0} | rope
    fields = {"default": (), "linear": ("factor",), "llama3": tuple(_LLAMA3)}[kind]
    for name in ("rope_theta", *fields):
        check_number(f"rope_parameters.{name}", given.get(name), 0, above=True)
    scaling = {name: _LLAMA3[name](given[name]) for name in fields}
    return llama.LlamaConfig(
        **_tower(hub, options),
        vocab_size=hub.vocab_size,
        num_key_value_heads=hub.num_key_value_heads or hub.num_attention_heads,
        head_dim=hub.head_dim,
        max_position_embeddings=hub.max_position_embeddings,
        rms_norm_eps=hub.rms_norm_eps,
        rope_theta=float(given["rope_theta"]),
        rope_scaling=llama.RopeScaling(kind, **scaling),
        attention_bias=hub.attention_bias,
        mlp_bias=hub.mlp_bias,
        tie_word_embeddings=hub.tie_word_embeddings if tied is None else tied,
    )


def _llava(hub: Any, options: dict[str, Any]) -> llava.LlavaConfig:
    layers = hub.vision_feature_layer
    if hub.vision_feature_select_strategy not in ("default", "full"):
        raise UserError(
            f"vision_feature_select_strategy {hub.vision_feature_select_strategy!r} is neither "
            "default nor full"
        )
    return llava.LlavaConfig(
        vision=_vision(hub.vision_config, options),
        # The head belongs to the whole model there: its own setting decides, not text_config's.
        text=_llama(hub.text_config, options, tied=bool(hub.tie_word_embeddings)),
        image_token_id=hub.image_token_index,
        vision_feature_layer=(layers,) if isinstance(layers, int) else tuple(layers),
        vision_feature_select_strategy=hub.vision_feature_select_strategy,
        projector_hidden_act=_activation(hub.projector_hidden_act),
        multimodal_projector_bias=hub.multimodal_projector_bias,
    )


def _clip(hub: Any, options: dict[str, Any]) -> clip.ClipConfig:
    return clip.ClipConfig(
        vision=_vision(hub.vision_config, options),
        text=_clip_text(hub.text_config, options),
        projection_dim=hub.projection_dim,
    )


def _clip_text(hub: Any, options: dict[str, Any]) -> clip.TextConfig:
    return clip.TextConfig(
        **_tower(hub, options),
        layer_norm_eps=hub.layer_norm_eps,
        vocab_size=hub.vocab_size,
        max_position_embeddings=hub.max_position_embeddings,
        eos_token_id=hub.eos_token_id,
    )


def _bert(hub: Any, options: dict[str, Any]) -> bert.BertConfig:
    return bert.BertConfig(
        **_tower(hub, options),
        layer_norm_eps=hub.layer_norm_eps,
        vocab_size=hub.vocab_size,
        max_position_embeddings=hub.max_position_embeddings,
        type_vocab_size=hub.type_vocab_size,
    )


def _mpnet(hub: Any, options: dict[str, Any]) -> mpnet.MPNetConfig:
    if hub.relative_attention_num_buckets < mpnet.BUCKETS:  # what transformers would look up there
        raise UserError(
            f"relative_attention_num_buckets {hub.relative_attention_num_buckets} is below "
            f"{mpnet.BUCKETS}; mend it"
        )
    return mpnet.MPNetConfig(
        **_tower(hub, options),
        layer_norm_eps=hub.layer_norm_eps,
        vocab_size=hub.vocab_size,
        max_position_embeddings=hub.max_position_embeddings,
        relative_attention_num_buckets=hub.relative_attention_num_buckets,
    )
