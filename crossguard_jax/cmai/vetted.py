"""A model that speaks of pictures, or finds what was said of them, and a check of what it says.

There is no list of answers to average over, so that a policy has one thing to do: what is said of a
picture that does not fit it is not given out. What is held against the picture is what was said of
it (``captions``), asked of it (``vqa``) or found for it (``retrieval``).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import UInt8

from crossguard_jax.cmai import policy as policies
from crossguard_jax.cmai.answering import Checked
from crossguard_jax.cmai.folders import CHECK, FILE, TEXT, is_immunized, read_facts
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.cmai.reader import Placed, Reader
from crossguard_jax.cmai.storage import SETTINGS, load_check, save_check
from crossguard_jax.cmai.threshold import Threshold
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf.clip import ClipEncoder, load_clip, save_text_tower
from crossguard_jax.hf.export import ModelCard
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.runtime import processes


@dataclass(frozen=True, eq=False)
class Vetting:
    """A check of pictures against texts, and what is rejected.

    Attributes:
        checked: the model's tower, and the check.
        trainable, frozen: their numbers.
        policy: one branch at most, which rejects.
    """

    checked: Checked
    trainable: Any
    frozen: Any
    policy: Policy

    @property
    def params(self) -> tuple[Any, Any, Any]:
        """All numbers, as `caught` takes them."""
        return self.trainable, self.frozen, self.policy.cuts

    def caught(self, params: Any, rows: Any, x: Float[Array, "B C X Y"]) -> Float[Array, " B"]:
        """Above 0 where pixels in [0, 1] do not fit the rows' ``h_t``: where the policy cuts less
        S_c, and below 0 everywhere where it does not cut. To be traced."""
        trainable, frozen, cuts = params
        if not self.policy.rejects:
            return jnp.full(len(x), -1.0)
        return cuts[0] - self.checked.s_c(
            trainable, rows, self.checked.see(trainable, frozen, x)[1]
        )

    def read(self, texts: Sequence[str]) -> dict[str, Array]:
        """``h_t`` [B, D_t] and ``pictures`` [B] of texts, each one's first window, for `caught`."""
        reader = self.checked.reader
        ids, mask = reader.pad([windows[0] for windows in reader.windows(texts)])
        arrays = {"read_ids": ids, "read_mask": mask}
        h_t = _read(self.checked, self.trainable, self.frozen, arrays)
        return {"h_t": h_t, "pictures": jnp.ones(len(texts), jnp.int32)}

    def s_c(
        self, levels: UInt8[np.ndarray, "M 3 X X"], texts: Sequence[str], batch_size: int = 64
    ) -> Float[np.ndarray, " M"]:
        """How well each text fits its picture.

        Args:
            levels: grey levels, at the model's resolution.
            texts: one a picture; of a long one, the least of its windows counts.
            batch_size: pictures at once.
        """
        scores = np.full(len(texts), np.inf, np.float32)
        reader = self.checked.reader
        rows = [(i, ids) for i, each in enumerate(reader.windows(texts)) for ids in each]
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            filled = [*part, *[part[-1]] * (batch_size - len(part))]
            ids, mask = reader.pad([tokens for _, tokens in filled])
            arrays = {"read_ids": ids, "read_mask": mask, "pictures": np.ones(len(ids), np.int32)}
            pixels = levels[[i for i, _ in filled]]
            fit = np.asarray(_fit(self.checked, self.trainable, self.frozen, arrays, pixels))
            np.minimum.at(scores, [i for i, _ in part], fit[: len(part)])
        return scores

    def rejects(
        self, levels: UInt8[np.ndarray, "M 3 X X"], texts: Sequence[str], batch_size: int = 64
    ) -> Bool[np.ndarray, " M"]:
        """Whose text does not fit its picture; see `s_c`."""
        if not self.policy.rejects:
            return np.zeros(len(texts), bool)
        return ~(self.s_c(levels, texts, batch_size) >= self.policy.branches[0].below)


@partial(jax.jit, static_argnums=0)
def _fit(checked: Checked, trainable: Any, frozen: Any, arrays: Any, levels: Any) -> Array:
    rows = checked.read(trainable, frozen, arrays)
    _, h_v = checked.see(trainable, frozen, levels.astype(jnp.float32) / 255)
    return checked.s_c(trainable, rows, h_v)


@partial(jax.jit, static_argnums=0)
def _read(checked: Checked, trainable: Any, frozen: Any, arrays: Any) -> Array:
    return checked.read(trainable, frozen, arrays)["h_t"]


@dataclass(frozen=True, eq=False)
class Vetted:
    """What comes of immunizing such a model.

    Attributes:
        task: a `wording.Wording` or a `matching.Matching`.
        trainable: its adapter, and the check's numbers.
        frozen: the rest.
        policy: rejects, or accepts everything.
        threshold: what the check's cut rests on; None without a check.
    """

    task: Any
    trainable: Any
    frozen: Any
    policy: Policy = Policy()
    threshold: Threshold | None = None

    @property
    def vetting(self) -> Vetting | None:
        """The check of what it says; None where nothing checks."""
        if self.task.reader is None:
            return None
        return Vetting(self.task, self.trainable, self.frozen, self.policy)

    def save(self, path: str | Path, card: ModelCard | None = None) -> None:
        """Writes the model as a folder that transformers loads, with its check in it.

        Of several processes, which all call it, the first writes.
        """
        folder, reader = Path(path), self.task.reader
        self.task.save(self.trainable, self.frozen, folder, card)
        if reader is not None:
            save_check(folder / CHECK, self.task.check(self.trainable), self.threshold)
            save_text_tower(folder / CHECK / TEXT, reader.tower)
        branches = [policies.as_config(branch) for branch in self.policy.branches[:-1]]
        facts = {"task": self.task.kind, "branches": branches}
        processes.by_first(lambda: write_atomic(folder / FILE, json.dumps(facts, indent=2) + "\n"))


def load_vetted(
    path: str | Path, dtype: str = "float32", mesh: Mesh | None = None, **options: Any
) -> tuple[Guard | ClipEncoder, Vetting | None]:
    """What `Vetted.save` wrote: the model, and the check of what it says, where there is one.

    Args:
        path: the folder.
        dtype, mesh: as of `Guard.from_pretrained`.
        options: of it, or of `hf.clip.load_clip`.

    Raises:
        UserError: whatever is wrong with the folder.
    """
    folder = resolve_folder(path)
    facts = read_facts(folder / FILE) if is_immunized(folder) else {"task": "", "branches": []}
    model: Guard | ClipEncoder
    if facts["task"] == "retrieval":
        model = load_clip(folder, dtype, mesh, **options)
        normalization = model.normalization
        table = model.model.text_model.token_embedding.embedding
    else:
        model = Guard.from_pretrained(folder, None, dtype, mesh, **options)
        normalization = model.encoder.normalization
        table = model.model.language_model.embed_tokens.embedding
    if not (folder / CHECK / SETTINGS).is_file():
        if facts["branches"]:
            raise UserError(f"{folder / CHECK}: the check is gone; copy the whole folder again")
        return model, None
    check, _ = load_check(folder / CHECK)
    tower = str(folder / CHECK / TEXT)
    reader = Reader(Placed(mesh), check.config.text_source, tower, 0)
    sizes = table.shape[1], table.dtype
    checked = Checked(model.model, normalization, *sizes, reader, check)
    trainable = {"adapters": checked.adapters, "check": nnx.split(check, graph=False)[1]}
    policy = Policy.from_config({"branches": facts["branches"]})
    return model, Vetting(checked, trainable, checked.frozen_parts, policy)
