"""BeaverTails (Ji et al., NeurIPS 2023) as downloaded: queries in 14 harm categories."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import records_of, required, shuffled, text_field
from crossguard_jax.io.jsonl import read_jsonl
from crossguard_jax.io.lines import ENDINGS

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


def beavertails(path: str | Path, *, seed: int | None = None) -> Iterator[Record | Rejected]:
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
      path: the file, or a folder that holds exactly one.
      seed: draws the order of the records; None keeps that of first appearance.

    Raises:
      UserError: there is no such file, or not even its first row can be unpacked. A file cut short
        later gives one rejected row, and the records of what was read.
    """
    file = _the_file(Path(path))
    return _resolved(file, seed)


def _resolved(file: Path, seed: int | None) -> Iterator[Record | Rejected]:
    prompts: dict[str, _Prompt] = {}
    for vote in records_of(file, read_jsonl(file), _vote):
        if isinstance(vote, Rejected):
            yield vote
            continue
        row, text, categories = vote
        prompt = prompts.setdefault(text, _Prompt(text, row))
        prompt.rows += 1
        prompt.votes.update(categories)
    for prompt in shuffled(prompts.values(), seed):
        # Of equals, max gives the first in the fixed order.
        category = max(CATEGORIES, key=lambda name: prompt.votes[name])
        if 2 * prompt.votes[category] > prompt.rows:
            yield _record(file, prompt, category)


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


def _the_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    endings = tuple(f".jsonl{ending}" for ending in ENDINGS)
    files = sorted(file for file in path.iterdir() if file.name.lower().endswith(endings))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise UserError(f"{path}: expected one file ({', '.join(endings)}), found {names}; name it")
    return files[0]
