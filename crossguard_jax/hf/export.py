"""Models out: an ordinary Hub folder, or a PEFT adapter, each with a filled-in model card."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from crossguard_jax.core.tree import named_leaves
from crossguard_jax.hf import names
from crossguard_jax.hf.configs import MODELS, Model
from crossguard_jax.hf.folder import CONFIG, INDEX, WEIGHTS, read_object
from crossguard_jax.hf.pictures import Processor
from crossguard_jax.hf.trained import (
    TRAINING_DATA,
    TrainedRow,
    read_training_data,
    write_training_data,
)
from crossguard_jax.nn import lora
from crossguard_jax.runtime import processes

SHARD_BYTES = 5 * 2**30
"""The most bytes one safetensors file takes, as on the Hub."""

# What of a source folder belongs to its weights and is written anew or left behind.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.msgpack", "*.h5")


@dataclass(frozen=True)
class ModelCard:
    """What a reader of an exported folder must know.

    Attributes:
        base: the model that was trained, by name or path.
        data: what it was trained on.
        metrics: dotted name to value, as in the report.
        limits: what it must not be trusted with.
        license: a Hub licence id.
        rows: the rows that the model learned from; they go into a file of their own.
    """

    base: str = "not recorded"
    data: str = "not recorded"
    metrics: Mapping[str, float] = field(default_factory=dict)
    limits: str = (
        "Scores are calibrated on the training mixture only. A low score is no proof of safety: "
        "measure ASR and false positives on your own traffic, and set the threshold there."
    )
    license: str = "other"
    rows: Sequence[TrainedRow] = ()

    def write(self, folder: str | Path, format: str) -> None:
        """Writes README.md and, where rows are known, their list (`hf.trained`)."""
        listing = ""
        (Path(folder) / TRAINING_DATA).unlink(missing_ok=True)
        if self.rows:
            n, digest = len(set(self.rows)), write_training_data(folder, self.rows)
            listing = (
                f"\n\n[{TRAINING_DATA}]({TRAINING_DATA}) lists the {n:,} rows by id, source and "
                "hash of content (`crossguard_jax.hf.trained.content_hash`). Its SHA-256: "
                f"`{digest}`"
            )
        (Path(folder) / "README.md").write_text(self.markdown(format, listing))

    def markdown(self, format: str, listing: str = "") -> str:
        """The README.md of an exported folder; ``listing`` says where its rows are."""
        rows = "\n".join(f"| {k} | {v:.4g} |" for k, v in self.metrics.items())
        table = f"| figure | value |\n| --- | --- |\n{rows}" if rows else "None were recorded."
        library = "peft" if format == "peft" else "transformers"
        head = (
            f"---\nlibrary_name: {library}\nlicense: {self.license}\ntags:\n- guard\n- llava\n---"
        )
        return (
            f"{head}\n\n# A multimodal guard ({format})\n\nReads a picture and a text and answers "
            "with one of two label tokens; written by crossguard_jax.\n\n"
            f"## Base\n\n{self.base}\n\n## Data\n\n{self.data}{listing}\n\n"
            f"## Metrics\n\n{table}\n\n## Limits\n\n{self.limits}\n"
        )


def family_of(model: nnx.Module) -> str:
    """The Hub ``model_type`` of one of our modules."""
    return next(name for name, cls in MODELS.items() if type(model) is cls)


def hub_tensors(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """``(Hub key, array)`` of every parameter, one layer at a time; LoRA factors are left out.

    A model may span processes, which then all go through it.

    Raises:
        UserError: the model's kernels are int8.
    """
    lora.refuse_int8(model, "weights under the Hub's keys")
    family = family_of(model)
    channels = getattr(getattr(model.config, "vision", model.config), "num_channels", 3)
    _, base = nnx.split(lora.detach(model), graph=False)
    for name, variable in named_leaves(base):
        hub = names.hub_tensor(family, name, variable.shape)
        for i, key in enumerate(hub.keys):
            value = processes.gather(variable[i] if hub.stacked else variable[...])
            yield key, np.asarray(hub.transform.write(value, channels), order="C")


def save_model(
    model: Model,
    folder: str | Path,
    source: str | Path,
    card: ModelCard | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    processor: Processor | None = None,
) -> None:
    """Writes a model as the Hub folder that transformers' own ``save_pretrained`` would.

    Of several processes, which all call it, the first writes.

    Args:
        model: adapters, if any, are folded into the weights first.
        folder: is made; files of the same names are replaced.
        source: the folder whose config, tokenizer and processor go along.
        card: written as README.md, with the rows that the source lists beside its own.
        dtype: of the weights; None keeps each one's own.
        shard_bytes: a file's size limit; more than one file gets an index.
        processor: what the model takes pictures through, in place of the source's.

    Raises:
        UserError: the model's kernels are int8.
    """
    lora.refuse_int8(model, f"{folder}: merged weights")
    folder, source = Path(folder), Path(source)
    model = lora.fold(model)
    tensors = hub_tensors(model)

    def write() -> None:
        _write_beside(model, folder, source, card, dtype, processor)
        write_weights(tensors, folder, jnp.dtype(dtype) if dtype else None, shard_bytes)

    processes.by_first(write, beside=tensors)


def _write_beside(
    model: Model,
    folder: Path,
    source: Path,
    card: ModelCard | None,
    dtype: str | None,
    processor: Processor | None,
) -> None:
    """All of a folder but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    _copy_companions(source, folder)
    if processor:
        processor.save(folder)
    first = next(v for _, v in named_leaves(model))
    config = read_object(source / CONFIG)
    for stale in ("torch_dtype", "transformers_weights"):
        config.pop(stale, None)
    config["dtype"] = str(jnp.dtype(dtype or first.dtype))
    text = getattr(model.config, "text", model.config)
    for part in (config, config.get("text_config") or {}):
        # A source that says so may hold a head of its own all the same.
        if part.get("tie_word_embeddings"):
            part["tie_word_embeddings"] = getattr(text, "tie_word_embeddings", True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if card:
        # What the source had learned from, its copy has learned from too.
        rows = (*read_training_data(source), *card.rows)
        replace(card, rows=rows).write(folder, "merged")


def _copy_companions(source: Path, folder: Path) -> None:
    if source.resolve() == folder.resolve():
        return
    for file in source.iterdir():
        skipped = any(file.match(p) for p in (*_WEIGHTS, "README.md", "adapter_*", "LICENSE"))
        if file.is_file() and not skipped:
            shutil.copyfile(file, folder / file.name)
    # A sentence encoder's modules behind the model: how it pools, and whether it normalizes.
    for module in source.glob("[0-9]_*/"):
        shutil.copytree(module, folder / module.name, dirs_exist_ok=True)


def save_tensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes a safetensors file that others may read as far as any new file of this process."""
    path.touch()
    mode = path.stat().st_mode  # safetensors leaves one that its owner alone may read
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)


def write_weights(
    tensors: Iterable[tuple[str, np.ndarray]],
    folder: Path,
    dtype: Any = None,
    limit: int = SHARD_BYTES,
) -> None:
    """Writes a model's `hub_tensors` alone, as `save_model`; an older model's are removed."""
    pending: dict[str, np.ndarray] = {}
    where: dict[str, int] = {}
    n = size = total = 0

    def flush() -> None:
        nonlocal pending, size, n
        if pending:
            save_tensors(pending, folder / f"part-{n}.tmp")
            n += 1
        pending, size = {}, 0

    for key, value in tensors:
        value = value.astype(dtype) if dtype else value
        if size + value.nbytes > limit:
            flush()
        pending[key], where[key] = value, n
        size, total = size + value.nbytes, total + value.nbytes
    flush()
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    files = [WEIGHTS if n == 1 else f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    for i, file in enumerate(files):
        (folder / f"part-{i}.tmp").replace(folder / file)
    if n > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {key: files[i] for key, i in sorted(where.items())},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
