"""BeaverTails (Ji et al., NeurIPS 2023) as downloaded: queries in 14 harm categories."""

import hashlib
import json
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import records_of, required, shuffled, text_field
from crossguard_jax.data.sources.downloads import find
from crossguard_jax.io import archives
from crossguard_jax.io.jsonl import read_jsonl
from crossguard_jax.io.lines import CUT, ENDINGS

# The files' own keys, in the files' own order, which settles ties.
CATEGORIES = (
    "animal_abuse",
    "child_abuse",
    "controversial_topics,politics",
    "discrimination,stereotype,injustice",
    "drug_abuse,weapons,banned_substance",
    "financial_crime,property_crime,theft",
    "hate_speech,offensive_language",
    "misinformation_regarding_ethics,laws_and_safety",
    "non_violent_unethical_behavior",
    "privacy_violation",
    "self_harm",
    "sexually_explicit,adult_content",
    "terrorism,organized_crime",
    "violence,aiding_and_abetting,incitement",
)


@dataclass(slots=True)
class _Prompt:
    """What all rows about one prompt say."""

    text: str
    row: int  # of its first row
    rows: int = 0
    votes: Counter[str] = field(default_factory=Counter)


SPLITS = ("train", "test", "330k_train", "330k_test", "30k_train", "30k_test")


def beavertails(
    path: str | Path, *, split: str = "train", seed: int | None = None
) -> Iterator[Record | Rejected]:
    """Reads the queries of a ``.jsonl``, ``.jsonl.gz`` or ``.jsonl.xz``, votes resolved.

    Rows repeat a prompt over answers and annotators, each with 14 yes-or-no categories. Prompts
    that differ in white space only are one. A category is a prompt's when more than half of its
    rows say so; a prompt with none gives no record. ``category`` is the one with most votes, the
    first in `CATEGORIES` among equals. ``is_safe`` is not read: it judges the answer, and a
    harmful prompt well answered is safe there. Nobody has judged the prompt as such, so ``label``
    is empty. Rejected rows come first, then the records in the order of first appearance, since
    the last row of a file may still vote.

    ``provenance`` has the file, the prompt's first row, how many rows it has (``rows``) and the
    votes as JSON (``votes``, categories without one left out).

    Args:
      path: the file, a folder that holds exactly one, or the download, with files such as
        ``round0/330k/train.jsonl.xz`` (``round0/train.jsonl.xz`` in older revisions).
      split: which file of the download: train or test, of the larger size that is there, or of
        the size given, such as "30k_train".
      seed: draws the order of the records; None keeps that of first appearance.

    Raises:
      UserError: there is no such file or split, or not even its first row can be unpacked. A file
        cut short later gives one rejected row, and the records of what was read.
    """
    file = _the_file(Path(path), split)
    return _resolved(file, seed)


def _resolved(file: Path, seed: int | None) -> Generator[Record | Rejected, None, int]:
    """The records; returns how many rows there were."""
    prompts: dict[str, _Prompt] = {}
    votes = 0
    for vote in records_of(file, read_jsonl(file), _vote):
        votes += 1
        if isinstance(vote, Rejected):
            votes -= vote.reason.startswith(CUT)
            yield vote
            continue
        row, text, categories = vote
        prompt = prompts.setdefault(text, _Prompt(text, row))
        prompt.rows += 1
        prompt.votes.update(categories)
    harmful = False
    for prompt in shuffled(prompts.values(), seed):
        # Of equals, max gives the first in the fixed order.
        category = max(CATEGORIES, key=lambda name: prompt.votes[name])
        if 2 * prompt.votes[category] > prompt.rows:
            harmful = True
            yield _record(file, prompt, category)
    if prompts and not harmful:
        reason = "no category is true in more than half of a prompt's rows; there is no query here"
        yield Rejected(str(file), next(iter(prompts.values())).row, reason)
    return votes


def _vote(row: int, value: dict[str, Any]) -> list[tuple[int, str, list[str]]]:
    text = " ".join(text_field(value, "prompt").split())
    flags = required(value, "category")
    if not isinstance(flags, dict) or set(flags) != set(CATEGORIES):
        raise UserError("field 'category' does not hold BeaverTails' 14 categories; mend the row")
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise UserError("field 'category' holds something other than true and false; mend the row")
    return [(row, text, [name for name, flag in flags.items() if flag])]


def _record(file: Path, prompt: _Prompt, category: str) -> Record:
    votes = {name: prompt.votes[name] for name in CATEGORIES if prompt.votes[name]}
    return Record(
        # Of the text, so that the 30k and the 330k release call a prompt the same.
        id=f"beavertails-{hashlib.sha256(prompt.text.encode()).hexdigest()[:16]}",
        images=(),
        text=prompt.text,
        category=category,
        source="beavertails",
        provenance={
            "file": str(file),
            "row": str(prompt.row),
            "rows": str(prompt.rows),
            "votes": json.dumps(votes),
        },
    )


def _the_file(path: Path, split: str) -> Path:
    if split not in SPLITS:
        raise UserError(f"beavertails: no split {split!r}; choose one of {', '.join(SPLITS)}")
    if not archives.is_folder(path):
        return path
    endings = tuple(f".jsonl{ending}" for ending in ENDINGS)
    files = [file for file in archives.listing(path) if file.name.lower().endswith(endings)]
    if len(files) == 1:
        return files[0]
    size, _, part = split.rpartition("_")
    folders = [f"{each}/" for each in ([size] if size else ("330k", "30k"))]
    names = [f"{folder}{part}{ending}" for folder in (*folders, "") for ending in endings[::-1]]
    places = [f"{round}{name}" for name in names for round in ("round0/", "")]
    return find(path, "BeaverTails", *places).file
