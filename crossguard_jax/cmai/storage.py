"""A trained check as two plain files: its numbers, and what they are the numbers of."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from crossguard_jax.cmai.consistency import Check, ConsistencyConfig, make_check
from crossguard_jax.cmai.threshold import Threshold
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import named_leaves
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.runtime import processes

SETTINGS = "consistency.json"
WEIGHTS = "consistency.safetensors"


def save_check(folder: str | Path, check: Check, threshold: Threshold | None = None) -> None:
    """Writes ``consistency.safetensors`` and ``consistency.json`` into a folder (made if need be).

    Of several processes, which all call it, the first writes.

    Args:
        folder: may be a guard's own.
        check: either kind.
        threshold: where it cuts; None while that is not chosen.
    """
    folder = Path(folder)
    tensors = {name: processes.gather(variable[...]) for name, variable in named_leaves(check)}
    cut = None if threshold is None else asdict(threshold)
    settings = {"check": asdict(check.config), "threshold": cut}

    def write() -> None:
        write_atomic(folder / WEIGHTS, save(tensors))
        write_atomic(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")

    processes.by_first(write)


def load_check(folder: str | Path) -> tuple[Check, Threshold | None]:
    """What `save_check` wrote, bit for bit.

    Raises:
        UserError: a file is missing, torn, or not of this check.
    """
    folder = Path(folder)
    config, threshold = _read_settings(folder / SETTINGS)
    file = folder / WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: missing or torn ({error}); train or copy it again") from error
    abstract = jax.eval_shape(lambda: make_check(config, jax.random.key(0)))
    graphdef, state = nnx.split(abstract, graph=False)
    expected = {name: variable.shape for name, variable in named_leaves(state)}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if expected != shapes:
        names = sorted(n for n in expected | shapes if expected.get(n) != shapes.get(n))
        raise UserError(
            f"{file}: not the weights that {SETTINGS} tells of: {', '.join(names)} differ"
        )
    filled = [
        (path, variable.replace(jnp.asarray(tensors[".".join(map(str, path))])))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(filled)), threshold


def _read_settings(path: Path) -> tuple[ConsistencyConfig, Threshold | None]:
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
        check = settings["check"]
        config = ConsistencyConfig(**check | {"picture_layers": tuple(check["picture_layers"])})
        cut = settings["threshold"]
        return config, None if cut is None else Threshold(**cut)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: not a consistency check's settings ({error}); train or copy it again"
        ) from error
