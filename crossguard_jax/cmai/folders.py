"""An immunized model as a folder: one that transformers loads, with all that the policy needs.

Beside the merged model lie ``cmai.json`` (answers, regime, branches), ``consistency/`` (the check;
its text tower; where the policy blends it, the adapter, so that it can be taken off what is merged)
and ``noise_secret``, what smoothing is keyed by. Nothing names a place outside of the folder.
"""

import json
import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from flax import nnx

from crossguard_jax.cmai import policy as policies
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.cmai.reader import Reader
from crossguard_jax.cmai.storage import SETTINGS, load_check, save_check
from crossguard_jax.cmai.task import Task
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import named_leaves
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf.clip import save_text_tower
from crossguard_jax.hf.export import ModelCard
from crossguard_jax.hf.folder import check_number, read_object
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.hf.peft import load_adapter, save_adapter
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.runtime import processes

FILE = "cmai.json"
ANSWERS = "answers"
"""The task of a model that answers from a closed list."""
CHECK = "consistency"  # a folder of its own: a model's loaders take every safetensors beside it
SECRET = "noise_secret"
TEXT, _ADAPTER = "text", "adapter"
_ADAPTER_CARD = ModelCard(
    base="the model two folders up",
    data="As the base, into which this adapter is merged already. It is here to be "
    "taken off again: laid over that model, as PEFT would do, it counts twice.",
)


def save_immunized(immunized: Immunized, path: str | Path, card: ModelCard | None = None) -> None:
    """Writes a folder that transformers loads as the robust model, and in it what the policy needs.

    The secret is new each time. Of several processes, which all call it, the first writes.
    """
    folder, task = Path(path), immunized.task
    immunized.guard.save_pretrained(folder, card=card)
    reader = task.reader
    if reader is not None:
        save_check(folder / CHECK, task.check(immunized.trainable), immunized.threshold)
        if reader.tower is not None:
            save_text_tower(folder / CHECK / TEXT, reader.tower)
    if _blends(immunized):
        model = task.model(immunized.trainable, immunized.frozen)
        save_adapter(model, folder / CHECK / _ADAPTER, "..", _ADAPTER_CARD)
    branches = [policies.as_config(branch) for branch in immunized.policy.branches[:-1]]
    facts = {"labels": task.labels, "regime": immunized.regime, "branches": branches}

    def write() -> None:
        secret = os.open(folder / SECRET, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(secret, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        write_atomic(folder / FILE, json.dumps(facts, indent=2) + "\n")

    processes.by_first(write)


def _blends(immunized: Immunized) -> bool:
    """Whether anything wants the model as it was before the adapter."""
    if immunized.regime != 1.0 or any(b.do == "robust" for b in immunized.policy.branches):
        return True
    layers = [name for name, _ in named_leaves(immunized.trainable["adapters"])]
    reader = immunized.task.reader
    itself = reader is not None and reader.graphdef is None
    return itself and any(name.startswith("language_model.") for name in layers)


def is_immunized(path: str | Path) -> bool:
    """Whether a folder is what `save_immunized` wrote.

    Raises:
        UserError: it has a part of that, but not what says how the parts work: as a plain model it
            would answer what its policy rejects.
    """
    folder = Path(path)
    if (folder / FILE).is_file():
        return True
    for part in (CHECK, SECRET):
        if (folder / part).exists():
            raise UserError(
                f"{folder}: has {part} and no {FILE}, so that its policy is not known; copy the "
                "whole folder again"
            )
    return False


def load_immunized(path: str | Path, *, noise_seed: int | None = None, **options: Any) -> Immunized:
    """What `save_immunized` wrote; a folder without its file is a model as it is.

    Args:
        path: the folder.
        noise_seed: in place of the folder's secret, so that what smoothing does can be made again
            elsewhere; for tests.
        options: of `Guard.from_pretrained`.

    Raises:
        UserError: whatever is wrong with the folder.
    """
    if not is_immunized(path):
        return Immunized.of(Guard.from_pretrained(path, **options))
    folder = resolve_folder(path)
    facts = read_facts(folder / FILE)
    if facts["task"] != ANSWERS:
        raise UserError(
            f"{folder}: is immunized for {facts['task']!r}, and gives no verdicts; measure it with "
            "crossguard tasks"
        )
    guard = Guard.from_pretrained(path, **options)
    blended = folder / CHECK / _ADAPTER
    merged = blended.is_dir()
    if merged:
        model = load_adapter(guard.model, blended)
        guard = Guard(model, guard.folder, guard.settings, guard.mesh, guard.rules)
    if not (folder / CHECK / SETTINGS).is_file():
        if facts["branches"]:
            raise UserError(f"{folder / CHECK}: the check is gone; copy the whole folder again")
        return Immunized.of(guard, facts["labels"])
    check, threshold = load_check(folder / CHECK)
    tower = folder / CHECK / TEXT
    length = guard.settings.window or guard.settings.max_length
    reader = Reader(guard, check.config.text_source, str(tower), length)
    task = Task(guard, facts["labels"], reader, check)
    if merged:
        task.merged = -1.0
    policy = Policy.from_config({"branches": facts["branches"]})
    trainable = {"adapters": task.adapters, "check": nnx.split(check, graph=False)[1]}
    immunized = Immunized(
        task, trainable, task.frozen_parts, policy, threshold, float(facts["regime"])
    )
    return replace(immunized, secret=_secret(folder, noise_seed))


def read_facts(path: Path) -> dict[str, Any]:
    """What ``cmai.json`` says, and what one that says less means.

    Raises:
        UserError: it says what cannot be.
    """
    plain: dict[str, Any] = {"task": ANSWERS, "labels": [], "regime": 1.0, "branches": []}
    facts = plain | read_object(path)
    try:
        check_number("regime", facts["regime"], 0, 1)
        for name in ("labels", "branches"):
            if not isinstance(facts[name], list):
                raise UserError(f"{name} {facts[name]!r} is no list; copy the folder again")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return facts


def _secret(folder: Path, noise_seed: int | None) -> bytes:
    if noise_seed is not None:
        return b"seed %d" % noise_seed
    path = folder / SECRET
    if not path.is_file():  # left out where a folder was given away; any will do
        return secrets.token_bytes(32)
    return path.read_bytes().strip()
