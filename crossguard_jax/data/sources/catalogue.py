"""What the published data sets are: their licences, how many rows each has, who may learn from it.

Counts are those of the papers and of the files as published. A download that has another number of
rows is read all the same, and one line says so.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crossguard_jax.core.errors import UserError


@dataclass(frozen=True, slots=True)
class Published:
    """A data set as its authors published it.

    Attributes:
      title: its name.
      licence: of the data.
      rows: how many rows the files of each split have.
      subsets: how many records each of a split's subsets has: the denominators, never pooled.
      trainable: the splits that a model may learn from; None for all of them.
      reason: why no more than those.
      tested: the split that systems are tested on where none is named; "" is the reader's own.
    """

    title: str
    licence: str
    rows: Mapping[str, int] = field(default_factory=dict)
    subsets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    trainable: tuple[str, ...] | None = ()
    reason: str = "a benchmark says nothing of a model that has learned from it"
    tested: str = ""


_KINDS = ("SD", "SD_TYPO", "TYPO")
_FIGSTEP = Published(
    "FigStep",
    "MIT",
    rows={"train": 250, "test": 250, "all": 500, "tiny": 50},
    trainable=("train",),
    reason="the other tasks are what guards are tested on",
    tested="test",
)

CATALOGUE: dict[str, Published] = {
    "siuo": Published("SIUO", "CC BY-NC 4.0", rows={"": 167}),
    "mm_safetybench": Published(
        "MM-SafetyBench",
        "CC BY-NC 4.0",
        rows={"all": 1_680, "tiny": 168}
        | dict.fromkeys(_KINDS, 1_680)
        | {f"tiny_{kind}": 168 for kind in _KINDS},
        subsets={"all": dict.fromkeys(_KINDS, 1_680), "tiny": dict.fromkeys(_KINDS, 168)},
    ),
    "figstep": _FIGSTEP,
    "figstep_twins": _FIGSTEP,
    "jailbreakv": Published("JailBreakV-28K", "MIT", rows={"full": 28_000, "mini": 280}),
    "vlguard": Published(
        "VLGuard",
        "none stated",
        rows={"test": 1_000, "train": 2_000},
        subsets={"test": {"safe_safes": 558, "safe_unsafes": 558, "unsafes": 442}},
        trainable=("train",),
        reason="the test rows are what guards are tested on",
        tested="test",
    ),
    "xstest": Published("XSTest", "CC BY 4.0", rows={"": 450}),
    "mossbench": Published(
        "MOSSBench",
        "CC BY-SA 4.0",
        rows={"safe": 300, "contrast": 244, "all": 544},
        reason="its authors give it for evaluation, never for training",
    ),
    # How many embodied tasks there are is not known here.
    "mssbench": Published("MSSBench", "none stated for the data", rows={"chat": 300}),
    "holisafe": Published("HoliSafe-Bench", "see its data card", rows={"all": 4_163}),
    "vlsbench": Published("VLSBench", "Apache-2.0", rows={"": 2_241}),
    "mm_vet": Published("MM-Vet", "CC BY-NC 4.0", rows={"v1": 218, "v2": 517}),
    "beavertails": Published(
        "BeaverTails",
        "CC BY-NC 4.0",
        rows={
            "30k_train": 27_186,
            "30k_test": 3_021,
            "330k_train": 300_567,
            "330k_test": 33_396,
        },
        trainable=None,
        tested="test",
    ),
    "vqav2": Published(
        "VQAv2",
        "CC BY 4.0 (questions and answers); its pictures are COCO's",
        rows={"train": 443_757, "val": 214_354, "test": 447_793},
        trainable=None,
        tested="val",
    ),
}


def tested_split(name: str, path: str | Path) -> str:
    """The split that systems are tested on where none is named: the one that a file is called
    after, or else the set's own; "" leaves it to the reader.

    Args:
      name: the reader.
      path: the download, or a file of it.
    """
    published = CATALOGUE.get(name)
    if published is None or not published.tested:
        return ""
    words = set(re.findall("[a-z]+", Path(path).stem.lower())) if Path(path).suffix else set()
    return next((split for split in published.rows if split in words), published.tested)


def refuse_training(name: str, split: str) -> None:
    """Refuses to let a model learn from rows that are there to test it, a model selected by them
    included.

    Args:
      name: the reader.
      split: which of its splits.

    Raises:
      UserError: the set, or this split of it, is for evaluation only.
    """
    published = CATALOGUE.get(name)
    if published is None or published.trainable is None or split in published.trainable:
        return
    what = f"split {split!r} of {name!r}" if published.trainable else repr(name)
    raise UserError(
        f"{what} ({published.title}; licence: {published.licence}) is never trained on: "
        f"{published.reason}; take it out of the configuration"
    )
