"""Which configurations a sweep is made of: variants, values of fields, and seeds."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossguard_jax.core.config import OVERRIDE, describe_variants, load_config
from crossguard_jax.core.errors import UserError, short
from crossguard_jax.train.identity import flattened

BASE = "base"
OPENING, CLOSING = tuple("([{"), tuple(")]}")
QUOTED = re.compile(r"""(['"])(?:\\.|(?!\1).)*\1""", re.DOTALL)
MOST, DIGITS = 100, 10
"""Bytes of a row's name, and of the hash at the end of one that would be longer: names of files
that are made of it have at most 255."""


@dataclass(frozen=True)
class GridRow:
    """One configuration of a sweep, run with every seed.

    Attributes:
        name: in characters that a file's name may have, without a dot.
        spec: ``FILE:VARIANT``.
        settings: values by field, as on the command line, beside those that all rows have.
        fields: the whole configuration: JSON values by dotted path.
    """

    name: str
    spec: str
    settings: Mapping[str, str]
    fields: Mapping[str, Any]

    def overrides(self) -> list[str]:
        """Its own, as `core.config.load_config` takes them."""
        return [f"--config.{field}={value}" for field, value in self.settings.items()]

    def differences(self, base: "GridRow") -> dict[str, tuple[Any, Any]]:
        """Fields in which it is another configuration, with the base's value and its own; None
        where there is no such field."""
        names = dict.fromkeys((*base.fields, *self.fields))
        pairs = {name: (base.fields.get(name), self.fields.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def rows_of(
    spec: str,
    overrides: Sequence[str] = (),
    variants: Sequence[str] = (),
    grid: Sequence[str] = (),
    one_at_a_time: bool = False,
    seeds: Sequence[str] = (),
) -> list[GridRow]:
    """The rows, the base first; of rows that are the same configuration the first alone.

    Args:
        spec: the base's ``FILE:VARIANT``.
        overrides: ``--config.FIELD=VALUE`` of all rows.
        variants: of the base's scale: ``no_benign`` of ``llava_7b`` is ``llava_7b_no_benign``.
        grid: ``FIELD=VALUE,VALUE``, a field each; see `parse_values`.
        one_at_a_time: each variant and each value alone, not every variant with every combination
            of values.
        seeds: fields that each run sets for itself, so that in them no row is another one.

    Raises:
        UserError: no such variant or field, a value of the wrong type, or one of a seed.
    """
    if BASE in variants:
        raise UserError(
            f"--variants {BASE}: that is what --config's own row is called; give the variant's "
            "function another name, or compare with it: --config FILE:VARIANT"
        )
    specs = {BASE: spec} | {name: variant_of(spec, name) for name in variants}
    values = dict(map(parse_values, grid))
    if len(values) < len(grid):
        raise UserError(f"--set: a field twice ({', '.join(grid)}); give all its values at once")
    given = {match["key"] for each in overrides if (match := OVERRIDE.match(each))}
    if fixed := [field for field in seeds if field in given or field in values]:
        raise UserError(
            f"{fixed[0]}: the seeds of a sweep's runs are --seeds N N ...; say it there"
        )
    unseeded = [f"--config.{field}=0" for field in seeds]
    if one_at_a_time:
        single = [{field: value} for field, given in values.items() for value in given]
        chosen = [*((name, {}) for name in specs), *((BASE, each) for each in single)]
    else:
        combined = [
            dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())
        ]
        chosen = [(BASE, {}), *itertools.product(specs, combined)]
    rows: list[GridRow] = []
    for name, settings in chosen:
        config = load_config(specs[name], [*overrides, *_overrides(settings), *unseeded])
        fields = dict(flattened(json.loads(config.to_json())))
        if all(fields != row.fields for row in rows):
            rows.append(GridRow(_row_name(name, settings, values), specs[name], settings, fields))
    if twice := _twice([row.name for row in rows]):
        raise UserError(f"two rows would be called {twice!r}; take one of them out")
    return rows


def variant_of(spec: str, name: str) -> str:
    """``FILE:VARIANT`` of the base's variant of that name.

    Raises:
        UserError: there is none, or it is of another scale.
    """
    path, _, base = spec.partition(":")
    described = describe_variants(path)
    if f"{base}_{name}" in described:
        return f"{path}:{base}_{name}"
    scale = re.match(r"`(\w+)`:", described.get(name, ""))
    if base and scale and scale[1] != base:
        raise UserError(f"--variants {name}: is {scale[1]}'s in {path}, and {base} has none such")
    return f"{path}:{name}"


def parse_values(text: str) -> tuple[str, list[str]]:
    """The field of ``FIELD=VALUE,VALUE``, and its values.

    In brackets and in quotes a comma parts no values; quotes around all of a value are no part of
    it.

    Raises:
        UserError: it is not written so.
    """
    name, equals, given = text.partition("=")
    parts = [part.strip() for part in _parted(given)]
    values = [part[1:-1] if QUOTED.fullmatch(part) else part for part in parts]
    if not name or not equals or not all(parts) or len(set(values)) < len(values):
        raise UserError(
            f"--set {text}: write FIELD=VALUE,VALUE with values that differ, and in quotes a "
            "bracket that stands alone"
        )
    return name.removeprefix("--config."), values


def _parted(text: str) -> list[str]:
    """The parts between commas; "" for one whose brackets are not closed."""
    parts, depth, at = [""], 0, 0
    while at < len(text):
        # An apostrophe inside of a word opens nothing.
        begins = parts[-1].rstrip()[-1:] in ("", *",([{:")
        quoted = QUOTED.match(text, at) if begins else None
        piece = quoted[0] if quoted else text[at]
        at += len(piece)
        depth += (piece in OPENING) - (piece in CLOSING)
        if depth < 0:
            return [""]
        if piece == "," and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return [""] if depth else parts


def shown(value: Any) -> str:
    """A field's value, for people."""
    return (
        "nothing"
        if value is None
        else short(value if isinstance(value, str) else json.dumps(value), 60)
    )


def _overrides(settings: Mapping[str, str]) -> Iterator[str]:
    return (f"--config.{field}={value}" for field, value in settings.items())


def _row_name(variant: str, settings: Mapping[str, str], fields: Iterable[str]) -> str:
    """``no_benign,learning_rate=1e-4``, in a file's characters and of a length that it may have;
    a field by its last part, where of all the sweep's ``fields`` no other has the same."""
    lasts = [field.rpartition(".")[2] for field in fields]
    words = [] if variant == BASE and settings else [variant]
    for field, value in settings.items():
        last = field.rpartition(".")[2]
        words.append(f"{last if lasts.count(last) == 1 else field}={value}")
    whole = ",".join(words)
    name = re.sub(r"[^\w=+,-]", "_", whole)
    if len(name.encode()) <= MOST:
        return name
    start = name.encode()[: MOST - DIGITS - 1].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(whole.encode()).hexdigest()[:DIGITS]}"


def _twice(names: Sequence[str]) -> str:
    return next((name for name in names if names.count(name) > 1), "")
