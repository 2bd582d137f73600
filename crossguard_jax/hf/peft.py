"""PEFT adapters in and out: ``adapter_config.json`` and ``adapter_model.safetensors``.

A PEFT factor is the transpose of ours: ``lora_A.weight`` [R, in], ``lora_B.weight`` [out, R].
"""

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf import names
from crossguard_jax.hf.export import ModelCard, family_of
from crossguard_jax.nn import lora

_PREFIX = "base_model.model."
# A module's name inside transformers 5, from its name on disk.
_IN_MEMORY = [
    (r"^language_model\.model\.", "model.language_model."),
    (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
]
# Adapter settings that change the arithmetic and that no adapter here has.
_UNKNOWN = ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")


def _module(family: str, path: str) -> str:
    name = names.module_name(family, path)
    for pattern, replacement in _IN_MEMORY if family == "llava" else []:
        name = re.sub(pattern, replacement, name)
    return name


def target_regex(family: str, paths: list[str]) -> str:
    """One regular expression for PEFT's ``target_modules`` that matches these layers alone.

    A list such as ``["q_proj", "v_proj"]`` would match both towers.
    """
    alternatives = [
        re.escape(_module(family, path).removeprefix("model.")).replace(r"\{i\}", r"\d+")
        for path in paths
    ]
    return rf"(?:.*\.)?(?:{'|'.join(alternatives)})"


def save_adapter(
    model: nnx.Module, folder: str | Path, base: str, card: ModelCard | None = None
) -> None:
    """Writes a model's adapter as PEFT would; rank and alpha are read off the adapter.

    Args:
        model: with an adapter of one rank and one alpha.
        folder: is made.
        base: ``base_model_name_or_path``.
        card: written as README.md.

    Raises:
        UserError: the model has no adapter, or layers of different rank or alpha.
    """
    folder, family = Path(folder), family_of(model)
    adapted = {p: d.lora for p, d in lora.dense_layers(model) if d.lora is not None}
    settings = {(x.rank, x.alpha) for x in adapted.values()}
    if len(settings) != 1:
        raise UserError(f"{folder}: PEFT export wants one adapter rank and alpha, got {settings}")
    ((rank, alpha),) = settings
    tensors = {}
    for path, update in adapted.items():
        module = _PREFIX + _module(family, path)
        for word, factor in (("lora_A", update.a), ("lora_B", update.b)):
            value = np.asarray(factor[...])
            for i, layer in enumerate(value if "{i}" in module else value[None]):
                key = f"{module.replace('{i}', str(i))}.{word}.weight"
                tensors[key] = np.asarray(layer.T, order="C")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if family == "llama" else None,
        "base_model_name_or_path": base,
        "target_modules": target_regex(family, sorted(adapted)),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    if card:
        (folder / "README.md").write_text(card.markdown("peft"))


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """``adapter_config.json``, checked.

    Raises:
        UserError: missing, unreadable, not LoRA, or with a setting that changes the arithmetic.
    """
    path = Path(folder) / "adapter_config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; give a PEFT adapter folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type {config.get('peft_type')!r}; only LORA is read")
    unknown = [key for key in _UNKNOWN if config.get(key)]
    if unknown or config.get("bias", "none") != "none":
        raise UserError(f"{path}: {', '.join(unknown) or 'bias'} is set; plain LoRA only is read")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or config[key] <= 0:
            raise UserError(f"{path}: {key} must be a positive number, got {config.get(key)!r}")
    return config


def load_adapter(model: lora.ModelT, folder: str | Path) -> lora.ModelT:
    """A copy of ``model`` with a PEFT adapter in its slots.

    Raises:
        UserError: whatever is wrong with the folder, all of it in one message.
    """
    folder, family = Path(folder), family_of(model)
    config = read_adapter_config(folder)
    file = folder / "adapter_model.safetensors"
    try:
        raw = load_file(file)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{file}: missing or truncated ({error})") from error
    tensors = {names.canonical(family, k.removeprefix(_PREFIX)): v for k, v in raw.items()}
    alpha = float(config["lora_alpha"])
    if config.get("use_rslora"):  # its scale is alpha / sqrt(r); ours is alpha / r
        alpha *= float(config["r"]) ** 0.5
    problems: list[str] = []
    model = lora.detach(model)
    for path, layer in lora.dense_layers(model):
        update = _read_update(family, path, layer, tensors, alpha, int(config["r"]), problems)
        if update is not None:
            layer.lora = update
    problems += [f"{key}: maps to no layer of this model" for key in tensors]
    if problems:
        raise UserError(f"{file}: {len(problems)} problem(s): {'; '.join(problems[:40])}")
    return model


def _read_update(
    family: str,
    path: str,
    layer: Any,
    tensors: dict[str, np.ndarray],
    alpha: float,
    rank: int,
    problems: list[str],
) -> lora.Lora | None:
    """Takes one layer's factors out of ``tensors``; None if the adapter leaves it alone."""
    *stacked, n_in, n_out = layer.kernel.shape
    module = names.module_name(family, path)
    layers = [module.replace("{i}", str(i)) for i in range(stacked[0] if stacked else 1)]
    if not any(f"{m}.{word}.weight" in tensors for m in layers for word in ("lora_A", "lora_B")):
        return None
    factors = {}
    for word, shape in (("lora_A", (rank, n_in)), ("lora_B", (n_out, rank))):
        parts = []
        for m in layers:
            part = tensors.pop(f"{m}.{word}.weight", None)
            if part is None or part.shape != shape:
                got = "missing" if part is None else f"shape {list(part.shape)}"
                problems.append(f"{m}.{word}.weight: {got}, wanted {list(shape)}")
                part = np.zeros(shape, np.float32)
            parts.append(part.T)
        factors[word] = jnp.asarray(np.stack(parts) if stacked else parts[0], jnp.float32)
    axes = layer.kernel.get_metadata("axes")
    return lora.Lora(factors["lora_A"], factors["lora_B"], alpha, axes)
