"""Manifests: files that list shards, each a file or some rows of one."""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, reason, short
from crossguard_jax.io import jsonl
from crossguard_jax.runtime.shards import Shard


def read_manifest(manifest: str | Path) -> list[Shard]:
    """The shards of a manifest, or the files that a pattern such as ``data/*.parquet`` names.

    A line of a manifest is a path, or a JSON object with ``path`` and, where only some rows of the
    file are meant, ``rows: [FIRST, LAST]``. Paths are relative to the manifest's folder.

    Raises:
        UserError: there are none, a line is neither, or two have rows in common.
    """
    if "://" in str(manifest):
        raise UserError(_remote(str(manifest)))
    place = Path(manifest)
    if any(character in place.name for character in "*?["):
        lines = [(i, {"path": path.name}) for i, path in enumerate(sorted(_matching(place)), 1)]
    elif place.is_dir():
        raise UserError(f"{place}: a folder; give a manifest, or '{place}/*.jsonl' in quotes")
    else:
        lines = [*_lines(place)]
    shards = [
        Shard(number, str(place.parent / value["path"]), _rows(place, line, value))
        for number, (line, value) in enumerate(lines)
    ]
    if not shards:
        raise UserError(f"{place}: no shard in it")
    spans: dict[str, list[tuple[int, int | float, int]]] = {}
    for shard, (line, _) in zip(shards, lines, strict=True):
        first, last = shard.rows or (1, math.inf)
        spans.setdefault(shard.path, []).append((first, last, line))
    for same in spans.values():
        for (_, last, before), (first, _, line) in itertools.pairwise(sorted(same)):
            if first <= last:
                lines_of = " and ".join(map(str, sorted((before, line))))
                raise UserError(
                    f"{place}, lines {lines_of}: rows in common; each row belongs to one shard"
                )
    return shards


def _remote(path: str) -> str:
    return f"{path}: shards are read through the file system; mount the bucket, and give its folder"


def _matching(pattern: Path) -> Iterator[Path]:
    return (path for path in pattern.parent.glob(pattern.name) if path.is_file())


def _lines(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = manifest.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{manifest}: no manifest that can be read ({reason(error)}); correct the path"
        ) from error
    for line, written in enumerate(text.splitlines(), start=1):
        if not (written := written.strip()):
            continue
        value = jsonl.parse_line(written.encode()) if written[0] == "{" else {"path": written}
        path = value.get("path") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(path, str) or not path or "\0" in path:
            raise UserError(
                f"{manifest}, line {line}: {short(written)} names no shard; write a path, or "
                '{"path": PATH, "rows": [FIRST, LAST]}'
            )
        if "://" in path:
            raise UserError(f"{manifest}, line {line}: {_remote(path)}")
        if unknown := value.keys() - {"path", "rows"}:
            raise UserError(
                f"{manifest}, line {line}: unknown field {sorted(unknown)[0]!r}; there are path "
                "and rows"
            )
        yield line, value


def _rows(manifest: Path, line: int, value: Mapping[str, Any]) -> tuple[int, int] | None:
    rows = value.get("rows")
    if rows is None:
        return None
    whole = isinstance(rows, list) and len(rows) == 2 and all(type(row) is int for row in rows)
    if not whole or not 1 <= rows[0] <= rows[1]:
        raise UserError(
            f"{manifest}, line {line}: rows {short(rows)}; give the first and the last, from 1"
        )
    return rows[0], rows[1]
