"""Readers of data as users have it on disk, by name.

A reader is a plain function ``reader(path, **options)`` that yields a ``Record`` for every good row
and a ``Rejected`` for every other one. Pictures are read when their row is reached. Every reader
takes a ``seed`` that draws the order of its rows, so that the first so many are a random draw.
"""

import difflib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.beavertails import beavertails
from crossguard_jax.data.sources.coco_captions import coco_captions
from crossguard_jax.data.sources.figstep import figstep, figstep_twins
from crossguard_jax.data.sources.implicit import holisafe, siuo, vlsbench
from crossguard_jax.data.sources.jailbreakv import jailbreakv
from crossguard_jax.data.sources.karpathy import karpathy
from crossguard_jax.data.sources.mm_safetybench import mm_safetybench
from crossguard_jax.data.sources.mm_vet import mm_vet
from crossguard_jax.data.sources.nlvr import nlvr
from crossguard_jax.data.sources.nlvr2 import nlvr2
from crossguard_jax.data.sources.reading import SourceRows
from crossguard_jax.data.sources.table import table
from crossguard_jax.data.sources.twins import mossbench, mssbench, xstest
from crossguard_jax.data.sources.vlguard import vlguard
from crossguard_jax.data.sources.vqav2 import vqav2

SOURCES: dict[str, Callable[..., Iterator[Record | Rejected]]] = {
    "table": table,
    "vlguard": vlguard,
    "figstep": figstep,
    "figstep_twins": figstep_twins,
    "vqav2": vqav2,
    "nlvr": nlvr,
    "nlvr2": nlvr2,
    "coco_captions": coco_captions,
    "karpathy": karpathy,
    "beavertails": beavertails,
    "siuo": siuo,
    "mm_safetybench": mm_safetybench,
    "jailbreakv": jailbreakv,
    "xstest": xstest,
    "mossbench": mossbench,
    "mssbench": mssbench,
    "holisafe": holisafe,
    "vlsbench": vlsbench,
    "mm_vet": mm_vet,
}


def read(name: str, path: str | Path, **options: Any) -> SourceRows:
    """Rows of the source called ``name`` at ``path``, counted as they come.

    Raises:
      UserError: there is no such source or it has no such option (the message names the nearest
        one), or ``path`` does not hold what the source expects.
    """
    if name not in SOURCES:
        raise UserError(f"source {name!r}: unknown{_nearest(name, list(SOURCES))}")
    parameters = inspect.signature(SOURCES[name]).parameters
    names = list(parameters)[1:]
    for option in options:
        if option not in names:
            raise UserError(f"source {name!r}: no option {option!r}{_nearest(option, names)}")
    split = parameters["split"].default if "split" in parameters else ""
    return SourceRows(name, options.get("split", split) or "", SOURCES[name](path, **options))


def has_option(name: str, option: str) -> bool:
    """Whether a source takes an option: not all have splits, or pictures that could be checked."""
    return name in SOURCES and option in inspect.signature(SOURCES[name]).parameters


def _nearest(word: str, names: list[str]) -> str:
    if not names:
        return "; it has none"
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.0)[0]
    return f"; did you mean {match!r}? (there are {', '.join(names)})"
