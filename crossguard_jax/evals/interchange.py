"""Benchmarks and kept verdicts in the files that other evaluation tools read.

inspect_ai's ``json_dataset`` reads ``inspect/BENCHMARK.jsonl``: a sample has the pictures and the
text as one user's message, the label as its target, and the systems' verdicts in its metadata.
GuardBench's `CustomDataset.load_data` reads ``guardbench/BENCHMARK.jsonl``, and its report the
probabilities in ``guardbench/predictions/BENCHMARK/SYSTEM.json``. It knows texts alone: a picture
stands in the text as ``<image>``, so that only a system that was asked here has seen it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossguard_jax.data.records import Record
from crossguard_jax.evals.benchmarks import ScoredRows, slug
from crossguard_jax.io import images, jsonl
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.runtime import remote


def write_inspect(
    tests: Mapping[str, Sequence[Record]], systems: Mapping[str, ScoredRows], folder: Path
) -> None:
    """Writes ``inspect/BENCHMARK.jsonl``, and the pictures beside them in ``inspect/pictures``.

    Args:
        tests: the rows by benchmark.
        systems: their scores, by the system's name.
        folder: of the report.
    """
    verdicts = {name: _by_key(scores) for name, scores in systems.items()}
    for benchmark, records in tests.items():
        lines = []
        for record in records:
            sample = inspect_sample(benchmark, record, folder / "inspect", relative=True)
            p_unsafe = {name: of[benchmark, record.id] for name, of in verdicts.items()}
            sample["metadata"]["p_unsafe"] = p_unsafe
            lines.append(jsonl.dumps(sample))
        write_atomic(folder / "inspect" / f"{slug(benchmark)}.jsonl", b"".join(lines))


def inspect_sample(
    benchmark: str, record: Record, folder: Path, *, relative: bool = False
) -> dict[str, Any]:
    """A row as inspect_ai takes a sample, by the names of its fields.

    Args:
        benchmark: what the row is of.
        record: the row.
        folder: gets its pictures, in ``pictures``.
        relative: name pictures from the folder on, as inspect_ai reads them in a file that lies
            there; else by their whole path or address.
    """
    content: list[dict[str, str]] = [
        {"type": "image", "image": _picture(image, record, folder, relative)}
        for image in record.images
    ]
    content += [{"type": "text", "text": record.text}] if record.text else []
    metadata: dict[str, Any] = {"benchmark": benchmark, "category": record.category}
    metadata |= {"pair": record.provenance["pair"]} if "pair" in record.provenance else {}
    return {
        "id": record.id,
        "input": [{"role": "user", "content": content}],
        "target": record.label,
        "metadata": metadata,
    }


def write_guardbench(
    tests: Mapping[str, Sequence[Record]], systems: Mapping[str, ScoredRows], folder: Path
) -> None:
    """Writes ``guardbench/BENCHMARK.jsonl`` and each system's predictions of it.

    A row without an answer has the probability that counts as wrong, as in our own tables.

    Args:
        tests, systems, folder: as in `write_inspect`.
    """
    folder = folder / "guardbench"
    rows = next(iter(systems.values()))
    truth = dict(zip(rows.keys(), rows.unsafe.tolist(), strict=True))
    for benchmark, records in tests.items():
        name, lines = slug(benchmark), []
        for record in records:
            text = "\n".join([*["<image>"] * len(record.images), *filter(None, [record.text])])
            sample = {
                "id": record.id,
                "label": truth[benchmark, record.id],
                "conversation": [{"role": "user", "content": text}],
            }
            lines.append(jsonl.dumps(sample))
        write_atomic(folder / f"{name}.jsonl", b"".join(lines))
        for system, scores in systems.items():
            counted = dict(zip(scores.keys(), scores.counted.clip(0, 1).tolist(), strict=True))
            predicted = {record.id: counted[benchmark, record.id] for record in records}
            path = folder / "predictions" / name / f"{system}.json"
            write_atomic(path, json.dumps(predicted, indent=1) + "\n")


def _by_key(scores: ScoredRows) -> dict[tuple[str, str], Any]:
    """Probabilities by benchmark and id, None where there is no answer."""
    answers = zip(scores.p_unsafe.tolist(), scores.answered.tolist(), strict=True)
    return dict(zip(scores.keys(), (p if there else None for p, there in answers), strict=True))


def _picture(image: bytes, record: Record, folder: Path, relative: bool) -> str:
    """Where a picture was written."""
    name = f"{hashlib.sha256(image).hexdigest()[:32]}.{images.ending(image, record.id)}"
    path = folder / "pictures" / name
    if not path.exists():
        write_atomic(path, image)
    return f"pictures/{name}" if relative else remote.shown(str(path.resolve()))
