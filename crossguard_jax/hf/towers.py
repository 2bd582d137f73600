"""A picture tower of another model in a LLaVA: robust ones are published as CLIPs.

FARE, TeCoA and Sim-CLIP come as open_clip's folders and state dicts or as transformers' CLIP, whole
or its picture tower alone. The projector was taught by the tower that the LLaVA came with, so that
one of another shape, or of other arithmetic, is refused.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules
from crossguard_jax.hf import open_clip
from crossguard_jax.hf.configs import read_config
from crossguard_jax.hf.folder import CONFIG, weight_files, weights_name
from crossguard_jax.hf.layouts import OPEN_CLIP, Renamed
from crossguard_jax.hf.load import build_model, resolve_folder
from crossguard_jax.hf.tensors import Source, open_tensors
from crossguard_jax.io.files import note
from crossguard_jax.nn.clip import ClipConfig, ClipVision, VisionConfig
from crossguard_jax.nn.llava import Llava, LlavaConfig

FAMILY = "clip_vision_model"
"""The Hub's ``model_type`` of a picture tower alone."""

_OURS = ("remat", "attention")  # of how it is computed, not of what comes of it
_BARE = "conv1.weight"  # of open_clip's picture tower without its prefix


def with_tower(
    model: Llava,
    folder: str | Path,
    dtype: str | None = "float32",
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
) -> Llava:
    """The LLaVA with the picture tower of another folder; all else is as it was.

    Args:
        model: takes the tower; it is changed.
        folder: transformers' CLIP, its picture tower, or a LLaVA; open_clip's folder; or
            safetensors alone, in any of these layouts, whole or the picture tower's own.
        dtype, mesh, rules: as in `hf.load.load_model`.

    Raises:
        UserError: a tower of another shape or arithmetic, by the field; or tensors that are
            missing or of another shape, all in one message.
    """
    path, own = resolve_folder(folder), model.config.vision
    other = _vision_config(path)
    if other is not None:
        for field in fields(VisionConfig):
            name, theirs, ours = field.name, getattr(other, field.name), getattr(own, field.name)
            if name not in _OURS and theirs != ours:
                raise UserError(
                    f"{path}: {name} {theirs!r}, and the model's own picture tower has {ours!r}; "
                    "give a tower of its kind"
                )
    tower = build_model(FAMILY, own, _tensors(path), str(path), dtype, mesh, rules)
    assert isinstance(tower, ClipVision)
    model.vision_tower = tower
    return model


def tower_hash(folder: str | Path) -> str:
    """SHA-256 over the weights that `with_tower` reads of a folder."""
    path, h = resolve_folder(folder), hashlib.sha256()
    for name in _files(path):
        note(path / name)
        with (path / name).open("rb") as file:
            h.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return h.hexdigest()


def _vision_config(path: Path) -> VisionConfig | None:
    """What a folder says of its picture tower; None where it says nothing."""
    if (path / CONFIG).is_file():
        _, config = read_config(path)
        config = config.vision if isinstance(config, ClipConfig | LlavaConfig) else config
        if not isinstance(config, VisionConfig):
            raise UserError(f"{path}: has no picture tower; give a CLIP or its picture tower")
        return config
    if (path / open_clip.CONFIG).is_file():
        config, _ = open_clip.read_settings(path)
        return config.vision
    return None


def _files(path: Path) -> list[str]:
    if weights_name(path):
        return list(weight_files(path))
    named = [name for name in open_clip.WEIGHTS if (path / name).is_file()]
    files = named[:1] or sorted(file.name for file in path.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{path}: no safetensors; a pickle of torch is not opened: save its state dict by "
            "safetensors.torch.save_file"
        )
    return files


def _tensors(path: Path) -> Source:
    tensors: Source = open_tensors(path, _files(path))
    keys = set(tensors)
    if _BARE in keys:
        tensors = _Prefixed(tensors, "visual.")
    return _Tower(Renamed(tensors, OPEN_CLIP))


class _Prefixed:
    """A source's tensors, each key with a prefix."""

    def __init__(self, source: Source, prefix: str):
        self.problems, self._source, self._n = source.problems, source, len(prefix)
        self._keys = [prefix + key for key in source]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._source.shape(key[self._n :])

    def read(self, key: str) -> np.ndarray:
        return self._source.read(key[self._n :])


class _Tower:
    """The tensors of a source that are a picture tower's."""

    _ROOMS = ("vision_model.", "vision_tower.", "model.vision_tower.")

    def __init__(self, source: Source):
        self.problems, self._source = source.problems, source

    def __iter__(self) -> Iterator[str]:
        keys = list(self._source)
        inside = [key for key in keys if key.startswith(self._ROOMS)]
        # What transformers saves of a tower alone may have no room.
        return iter(inside or keys)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._source.shape(key)

    def read(self, key: str) -> np.ndarray:
        return self._source.read(key)
