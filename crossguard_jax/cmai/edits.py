"""Edited texts of training rows, as users could type them: what MBAT's adversary chooses among."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crossguard_jax.attacks.text.edits import CHARACTER_EDITS
from crossguard_jax.cmai.answering import WINDOWED
from crossguard_jax.cmai.mbat import EDITED
from crossguard_jax.cmai.task import Task, TaskRequest
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array
from crossguard_jax.data.pipeline import Batch
from crossguard_jax.data.records import Record
from crossguard_jax.runtime.placement import WHOLE, Share


def edited_text(text: str, edits: int, rng: np.random.Generator) -> str:
    """A text with 1 to ``edits`` letters edited at random; a text without letters stays."""
    for _ in range(int(rng.integers(1, edits + 1))):
        kinds = rng.permutation(list(CHARACTER_EDITS))
        pools = (list(CHARACTER_EDITS[kind](text)) for kind in kinds)
        pool = next((pool for pool in pools if pool), [text])
        text = pool[int(rng.integers(len(pool)))]
    return text


def edited_rows(
    task: Task,
    records: Sequence[Record],
    length: int,
    n: int,
    edits: int,
    share: Share = WHOLE,
    buckets: bool = False,
    seed: int = 0,
) -> Batch:
    """``n`` edited texts of each record as arrays, [B, n, ...] each, by `mbat.EDITED` names.

    They are a record's own: it has the same ones whenever it comes. An edit that would not fit into
    a row, and be cut, is not made.

    Args:
        task: whose prompt stands around them.
        records: as of `Task.batch`, and so are ``length`` and ``share``.
        length: tokens of a row with one picture.
        n: edited texts of each.
        edits: letters edited of each, at most.
        share: the rows that are made.
        buckets: as of `Task.batch`, and refused.
        seed: of the run, so that runs of other seeds meet other edits.

    Raises:
        UserError: buckets, since a text and its edits may not be of one length then.
    """
    if buckets:
        raise UserError("mbat.perturb 'edits': rows must be of one length; set data.buckets False")
    encoder = task.guard.encoder
    texts: list[list[str]] = []
    for record in records:
        rng = np.random.default_rng([seed, zlib.crc32(record.id.encode("utf-8", "replace"))])
        made = [edited_text(record.text, edits, rng) for _ in range(n)]
        texts.append([t if encoder.fits(t, length) else record.text for t in made])
    own = share.rows(len(records)).tolist()
    parts: list[Batch] = []
    for k in range(n):
        rows, longest = encoder.training_rows(
            [replace(r, text=some[k]) for r, some in zip(records, texts, strict=True)], length
        )
        chosen = [texts[i][k] for i in own]
        read = task.reader.windows(chosen) if task.reader else [[[]]] * len(own)
        requests = [
            TaskRequest(text, [rows[i]], [], windows[:1])
            for text, i, windows in zip(chosen, own, read, strict=True)
        ]
        arrays = task.stack(requests, longest)
        parts.append({name: arrays[name][:, 0] for name in WINDOWED if name in arrays})
    return {EDITED + name: np.stack([part[name] for part in parts], axis=1) for name in parts[0]}


def read_edited(task: Any, trainable: Any, frozen: Any, batch: Any) -> Any:
    """`Answering.read` of the rows' texts and of their edited ones, h_t [B, n, D]."""
    batch = task.read(trainable, frozen, batch)
    if task.reader is None:
        return batch
    names = ("read_ids", "read_mask")
    edited: dict[str, Array] = {name: batch[EDITED + name] for name in names}
    h_t = task.read(trainable, frozen, edited)["h_t"]
    return batch | {f"{EDITED}h_t": h_t}
