"""A detector's folder: ``detector.json``, and its numbers in ``detector.safetensors``.

The model that it reads stays where it is; the file names it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import PromptTemplate
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.settings import Settings
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.systems.rivals.detector import FILE, Detector, read_facts, write_facts
from crossguard_jax.systems.rivals.hidden_detect import HiddenDetect
from crossguard_jax.systems.rivals.jaildam import JailDam
from crossguard_jax.systems.rivals.rcs import Rcs

NUMBERS = "detector.safetensors"


def save_detector(
    folder: str | Path, detector: Detector, model: str, adapter: str = "", remark: str = ""
) -> None:
    """Writes a detector.

    Args:
        folder: made if need be.
        detector: any of ours.
        model: the folder of the model that it reads, as it is to be found again.
        adapter: of that model.
        remark: what is to be said beside its verdicts.
    """
    folder = Path(folder)
    facts: dict[str, Any] = {"model": model, "adapter": adapter, "remark": remark}
    facts["prompt"] = vars(detector.settings.prompt)
    numbers: dict[str, np.ndarray] = {}
    if isinstance(detector, HiddenDetect):
        facts |= {"words": list(detector.words), "layers": list(detector.layers)}
    elif isinstance(detector, Rcs):
        facts |= {"layer": detector.layer, "rule": detector.rule}
        numbers = _under("projection", detector.projection)
        numbers |= _under("reference", detector.reference)
    elif isinstance(detector, JailDam):
        numbers = {"memory": detector.memory} | _under("autoencoder", detector.autoencoder)
    folder.mkdir(parents=True, exist_ok=True)
    if numbers:
        arrays = {name: np.ascontiguousarray(x) for name, x in numbers.items()}
        write_atomic(folder / NUMBERS, save(arrays))
    write_facts(folder, detector, facts)


def load_detector(folder: str | Path, dtype: str | None = "float32", **options: Any) -> Detector:
    """What `save_detector` wrote.

    Args:
        folder: the folder.
        dtype: of the model's weights.
        options: of `Guard.from_pretrained`; ``prompt`` and ``threshold`` as there.

    Raises:
        UserError: whatever is wrong with it or with the model that it names.
    """
    folder = Path(folder)
    cut, facts = read_facts(folder, ("model", "adapter", "prompt"))
    kind = facts["kind"]
    if kind not in ("hidden_detect", "rcs", "jaildam"):
        raise UserError(f"{folder / FILE}: kind {kind!r} is no detector of ours; fit it anew")
    detector: Detector
    if kind == "jaildam":
        numbers = _numbers(folder)
        settings = Settings(prompt=PromptTemplate.from_fields(facts["prompt"]))
        clip = load_clip(facts["model"], dtype)
        encoder = _inside("autoencoder", numbers)
        detector = JailDam(clip, settings, numbers["memory"], encoder, cut)
    else:
        if options.get("prompt") is None:
            options["prompt"] = PromptTemplate.from_fields(facts["prompt"])
        adapter = facts["adapter"] or None
        guard = Guard.from_pretrained(facts["model"], adapter, dtype, **options)
        if kind == "hidden_detect":
            detector = HiddenDetect(guard, facts["words"], facts["layers"], cut)
        else:
            numbers = _numbers(folder)
            parts = (_inside(name, numbers) for name in ("projection", "reference"))
            detector = Rcs(guard, facts["layer"], next(parts), facts["rule"], next(parts), cut)
    threshold = options.get("threshold")
    detector.settings = replace(
        detector.settings, threshold=0.5 if threshold is None else threshold
    )
    detector.folder = folder
    detector.remarks = tuple(filter(None, [facts.get("remark")]))
    return detector


def _under(name: str, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {f"{name}.{key}": np.asarray(value) for key, value in arrays.items()}


def _inside(name: str, numbers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    start = f"{name}."
    return {key.removeprefix(start): x for key, x in numbers.items() if key.startswith(start)}


def _numbers(folder: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(folder / NUMBERS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / NUMBERS}: missing or torn ({error}); fit the detector anew"
        ) from error
