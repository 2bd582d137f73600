"""What counts in a Hub folder: the files that hold its weights, and its JSON, checked."""

import math
import os
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.io import files, jsonl

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def read_json(path: Path) -> Any:
    """A JSON file of a folder.

    Raises:
        UserError: it is not there, or not JSON.
    """
    files.note(path)
    if not path.is_file():
        raise UserError(f"{path}: not found; download the whole folder")
    return jsonl.read_json(path)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of a folder that holds named fields.

    Raises:
        UserError: it is not there, not JSON, or JSON of another shape.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: a {type(value).__name__} in place of a JSON object; download or write it "
            "again"
        )
    return value


def read_objects(folder: str | Path, *names: str) -> dict[str, Any]:
    """The fields of those of the named files that a folder has, in one; see `read_object`."""
    values: dict[str, Any] = {}
    for path in (Path(folder) / name for name in names):
        values |= read_object(path) if path.is_file() else {}
    return values


def check_number(
    name: str,
    value: Any,
    least: int | float = -math.inf,
    most: int | float = math.inf,
    *,
    whole: bool = False,
    above: bool = False,
) -> None:
    """Raises a `UserError` that names the field if ``value`` is not a finite number (an integer,
    if ``whole``) from ``least`` (not itself, if ``above``) to ``most``."""
    kind = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if kind and math.isfinite(value) and least <= value <= most and not (above and value == least):
        return
    expected = "a whole number" if whole else "a number"
    if math.isfinite(most):
        expected += f" from {least:g} to {most:g}"
    elif math.isfinite(least):
        expected += f" above {least:g}" if above else f" of at least {least:g}"
    raise UserError(f"{name} {value!r} is not {expected}; mend it")


def weights_name(folder: Path) -> str | None:
    """The safetensors file or index that transformers would open; None if there is neither.

    Its order (``modeling_utils._get_resolved_checkpoint_files``): what the config names, the one
    file, the index. Whatever else lies there (shards of an older save, other formats) never counts.

    Raises:
        UserError: the config names something else than safetensors of this folder.
    """
    config = folder / CONFIG
    named = read_object(config).get("transformers_weights") if config.is_file() else None
    if named is not None:
        if not str(named).endswith((".safetensors", ".safetensors.index.json")):
            raise UserError(
                f"{config}: transformers_weights {named!r} names neither safetensors nor an index "
                "of them; take the field out"
            )
        _inside(folder, named, f"{config}: transformers_weights")
        return named
    return next((name for name in (WEIGHTS, INDEX) if (folder / name).is_file()), None)


def weight_files(folder: Path) -> list[str]:
    """The safetensors that hold a folder's model, sorted; what `weights_name` says, or its shards.

    Raises:
        UserError: there are none, or the index is damaged.
    """
    name = weights_name(folder)
    if name is None:
        raise UserError(_without_weights(folder))
    if not name.endswith(".index.json"):
        return [name]
    index = folder / name
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{index}: no weight_map of tensors to files; download it again")
    for key, file in shards.items():
        _inside(folder, file, f"{index}: weight_map.{key}")
    return sorted(set(shards.values()))


def _inside(folder: Path, name: Any, field: str) -> None:
    root = Path(os.path.abspath(folder))  # not resolved: in the Hub's cache files are links
    if not isinstance(name, str) or root not in Path(os.path.abspath(root / name)).parents:
        raise UserError(f"{field} {name!r} is no file of this folder; download the file again")


def _without_weights(folder: Path) -> str:
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if pickles:
        return (
            f"{folder}/{pickles[0]}: a pickle, which is not opened; load the folder in "
            "transformers once and write it with save_pretrained, which makes safetensors"
        )
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    beside = f" (never read: {', '.join(others[:3])})" if others else ""
    return f"{folder}: neither {WEIGHTS} nor {INDEX}{beside}; download the whole folder"
