"""PEFT adapters in and out: ``adapter_config.json`` and ``adapter_model.safetensors``.

A PEFT factor is the transpose of ours: ``lora_A.weight`` [R, in], ``lora_B.weight`` [out, R].
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf import names
from crossguard_jax.hf.export import ModelCard, family_of, save_tensors
from crossguard_jax.hf.folder import check_number, read_object
from crossguard_jax.hf.load import spellings
from crossguard_jax.hf.tensors import Tensors, open_tensors
from crossguard_jax.nn import lora
from crossguard_jax.runtime import processes

_PREFIX = "base_model.model."
# A module's name inside transformers 5, from its name on disk.
_IN_MEMORY = [
    (r"^language_model\.model\.", "model.language_model."),
    (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
]
# Fields of PEFT's LoraConfig that say which layers have factors, how those were trained and from
# what start, or that only serve others. Any other that is set is refused: it means something else.
_HARMLESS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "lora_alpha", "use_rslora", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
_SHAPES: dict[str, Any] = {
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern"), str),
    **{"layers_to_transform": int, "base_model_name_or_path": str},
}
_OFF: tuple[Any, ...] = (None, False, "none", "", 0, [], {})
# Starts that leave the base as it is. The others (pissa, olora, corda, loftq, lora_ga) take the
# factors' start out of it, so that the factors belong to a base which no folder holds.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def _module(family: str, path: str) -> str:
    name = names.module_name(family, path)
    for pattern, replacement in _IN_MEMORY if family == "llava" else []:
        name = re.sub(pattern, replacement, name)
    return name


def target_regex(family: str, adapted: Mapping[str, lora.Lora]) -> str:
    """One regular expression for PEFT's ``target_modules`` that matches these layers alone.

    A list such as ``["q_proj", "v_proj"]`` would match both towers, and beside an expression PEFT
    takes no ``layers_to_transform``: where some layers of a stack are left alone, the numbers of
    the others stand in it.
    """
    alternatives = []
    for path, update in sorted(adapted.items()):
        name = re.escape(_module(family, path).removeprefix("model."))
        if r"\{i\}" in name:
            layers, height = lora.adapted_layers(update), update.a.shape[0]
            numbers = r"\d+" if len(layers) == height else f"(?:{'|'.join(map(str, layers))})"
            name = name.replace(r"\{i\}", numbers)
        alternatives.append(name)
    return rf"(?:.*\.)?(?:{'|'.join(alternatives)})"


def save_adapter(
    model: nnx.Module, folder: str | Path, base: str, card: ModelCard | None = None
) -> None:
    """Writes a model's adapter as PEFT would; rank and alpha are read off the adapter.

    Layers whose factors are zeros were left alone (`lora.attach`) and are not written. Of several
    processes, which all call it, the first writes.

    Args:
        model: with an adapter of one rank and one alpha.
        folder: is made.
        base: ``base_model_name_or_path``.
        card: written as README.md.

    Raises:
        UserError: the model has no adapter, or layers of different rank or alpha.
    """
    folder, family = Path(folder), family_of(model)
    adapted = {
        path: layer.lora
        for path, layer in lora.dense_layers(model)
        if layer.lora is not None and (layer.kernel.ndim < 3 or lora.adapted_layers(layer.lora))
    }
    settings = {(x.rank, x.alpha) for x in adapted.values()}
    if len(settings) != 1:
        raise UserError(f"{folder}: PEFT export wants one adapter rank and alpha, got {settings}")
    ((rank, alpha),) = settings
    tensors = {}
    for path, update in adapted.items():
        module = _PREFIX + _module(family, path)
        layers = lora.adapted_layers(update) if "{i}" in module else [0]
        for word, factor in (("lora_A", update.a), ("lora_B", update.b)):
            value = processes.gather(factor[...])
            stacked = "{i}" in module
            for i in layers:
                key = f"{module.replace('{i}', str(i))}.{word}.weight"
                tensors[key] = np.asarray((value[i] if stacked else value).T, order="C")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if family == "llama" else None,
        "base_model_name_or_path": base,
        "target_modules": target_regex(family, adapted),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        if card:
            card.write(folder, "peft")

    processes.by_first(write)


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """``adapter_config.json``, checked.

    Raises:
        UserError: missing, unreadable, not LoRA, or with a setting that changes the arithmetic.
    """
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        raise UserError(f"{path}: not found; give a PEFT adapter folder")
    config = read_object(path)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type {config.get('peft_type')!r}; only LORA is read")
    start = config.get("init_lora_weights")
    if start not in _STARTS:
        raise UserError(
            f"{path}: init_lora_weights {start!r} changed the base that the factors go over; save "
            "with PEFT's path_initial_model_for_weight_conversion, or merge it into the base"
        )
    unknown = [k for k, v in config.items() if k not in _HARMLESS and v not in _OFF]
    if unknown:
        raise UserError(
            f"{path}: {', '.join(unknown)} is set; only plain LoRA is computed here: merge the "
            "adapter into its base with PEFT's merge_and_unload"
        )
    for field, kinds in _SHAPES.items():
        value = config.get(field)
        items = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(item, kinds) for item in items):
            raise UserError(f"{path}: {field} {value!r} is of another shape than PEFT writes")
        try:
            re.compile(value if isinstance(value, str) else "")
        except re.error as error:
            raise UserError(f"{path}: {field} is no regular expression ({error})") from error
    check_number(f"{path}: r", config.get("r"), 1, whole=True)
    check_number(f"{path}: lora_alpha", config.get("lora_alpha"), 0, above=True)
    return config


def load_adapter(model: lora.ModelT, folder: str | Path) -> lora.ModelT:
    """A copy of ``model`` with a PEFT adapter in its slots.

    A layer of a stack that the adapter leaves alone gets an update of zeros.

    Raises:
        UserError: whatever is wrong with the folder, all of it in one message.
    """
    folder, family = Path(folder), family_of(model)
    config = read_adapter_config(folder)
    file = _factors_file(folder)
    alpha, rank = float(config["lora_alpha"]), config["r"]
    if config.get("use_rslora"):  # its scale is alpha / sqrt(r); ours is alpha / r
        alpha *= float(rank) ** 0.5
    factors = _Factors(open_tensors(folder, [file.name]), family, config)
    model = lora.detach(model)
    for path, layer in lora.dense_layers(model):
        pair = factors.take(names.module_name(family, path), layer.kernel.shape, rank)
        if pair is not None:
            layer.lora = lora.Lora(*pair, alpha, layer.kernel.get_metadata("axes"))
    problems = factors.problems + [f"{k}: maps to no layer of this model" for k in factors.keys]
    if problems:
        raise UserError(f"{file}: {len(problems)} problem(s): {'; '.join(problems[:40])}")
    return model


def _factors_file(folder: Path) -> Path:
    beside = folder / "non_lora_trainables.bin"
    if beside.is_file():
        raise UserError(
            f"{beside}: weights that were trained beside the adapter, in a pickle, which is not "
            "opened; merge both into the base"
        )
    file = folder / "adapter_model.safetensors"
    pickled = file.with_suffix(".bin")
    if pickled.is_file() and not file.is_file():
        raise UserError(
            f"{pickled}: a pickle, which is not opened; load the adapter in PEFT once and write it "
            "with save_pretrained, which makes safetensors"
        )
    return file


class _Factors:
    """The factors of an adapter's file, taken out layer by layer, and what is wrong with them."""

    def __init__(self, tensors: Tensors, family: str, config: dict[str, Any]):
        self._tensors, self._family = tensors, family
        self.keys, conflicts = spellings(family, tensors, _PREFIX)
        self._targets = _Targets(config, self.keys)
        self.problems = [*tensors.problems, *conflicts]
        if not self.keys and not self.problems:
            self.problems.append(
                "no tensor in it, as where DeepSpeed ZeRO-3 saved without gathering its shards; "
                "save the adapter again"
            )

    def take(
        self, module: str, shape: tuple[int, ...], rank: int
    ) -> tuple[jax.Array, jax.Array] | None:
        """``(a, b)`` of a layer or a stack (``{i}`` in its name); None if it is left alone."""
        *stacked, n_in, n_out = shape
        modules = [module.replace("{i}", str(i)) for i in range(stacked[0] if stacked else 1)]
        alone = {
            m for m in modules if not {f"{m}.lora_A.weight", f"{m}.lora_B.weight"} & {*self.keys}
        }
        self.problems += [
            f"{m}.lora_A.weight: missing, but target_modules names this layer"
            for m in modules
            if m in alone and m in self._targets
        ]
        if len(alone) == len(modules):
            return None

        def stack(word: str, shape: tuple[int, int]) -> jax.Array:
            parts = [
                np.zeros(shape) if m in alone else self._one(f"{m}.{word}.weight", shape)
                for m in modules
            ]
            value = np.stack([part.T for part in parts]) if stacked else parts[0].T
            return jnp.asarray(value, jnp.float32)

        return stack("lora_A", (rank, n_in)), stack("lora_B", (n_out, rank))

    def _one(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        key = self.keys.pop(name, None)
        if key is not None and self._tensors.shape(key) == shape:
            return np.array(self._tensors.read(key))
        got = "missing" if key is None else f"shape {list(self._tensors.shape(key))}"
        self.problems.append(f"{name}: {got}, wanted {list(shape)}")
        return np.zeros(shape)


class _Targets:
    """The layers that PEFT lays an adapter over (``tuners_utils.check_target_module_exists``).

    Modules go by the names that they had when the adapter was saved. Only the file's keys tell
    those, so a stack of which there is no key has no layer here.
    """

    def __init__(self, config: dict[str, Any], keys: Mapping[str, str]):
        # Without the field they are the architecture's own, which the keys name.
        named = {key.split(".lora_")[0].rpartition(".")[2] for key in keys}
        targets, self._excluded = config.get("target_modules"), config.get("exclude_modules")
        self._targets: str | list[str] = sorted(named) if targets is None else targets
        only = config.get("layers_to_transform")
        self._layers = [only] if isinstance(only, int) else only or []
        stacks = config.get("layers_pattern") or r"[^.]*"
        self._stacks = "|".join([stacks] if isinstance(stacks, str) else stacks)
        self._spelled = {
            here[1]: there[1]
            for canonical, key in keys.items()
            if (here := _LAYER.match(canonical)) and (there := _LAYER.match(key))
        }

    def __contains__(self, module: str) -> bool:
        here = _LAYER.match(module)
        if not here or here[1] not in self._spelled:
            return False
        name = self._spelled[here[1]].removeprefix(_PREFIX) + module[here.end(1) :]
        if _matches(self._excluded or [], name) or not _matches(self._targets, name):
            return False
        if not self._layers:
            return True
        number = re.match(rf"(?:.*?\.)?(?:{self._stacks})\.(\d+)\.", name)
        return number is not None and int(number[1]) in self._layers


_LAYER = re.compile(r"(.*?)\.\d+\.")


def _matches(patterns: str | list[str], name: str) -> bool:
    if isinstance(patterns, str):
        return patterns.lower() == "all-linear" or bool(re.fullmatch(patterns, name))
    return any(f".{name}".endswith(f".{pattern}") for pattern in patterns)
