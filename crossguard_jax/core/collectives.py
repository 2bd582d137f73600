"""What a compiled program sends between devices, read from its text.

Agreement with one device says nothing of sharding: a program that keeps every row on every chip is
right, and does not fit. What it sends says it. The text is XLA's own, after partitioning
(``jit(f).lower(...).compile().as_text()``); no device is needed to read it.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OPS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}


@dataclass(frozen=True)
class Collective:
    """One array that one device's program sends or receives.

    Attributes:
        op: a name in `OPS`.
        dtype: XLA's name of it, such as ``bf16``.
        shape: on one device, and of the larger side: what an all-gather has gathered, what a
            reduce-scatter is given.
        group: how many devices take part together.
        inside_loop: whether a loop's body does it (a layer of a scanned stack).
        trips: how often a run of the program does it; None where a loop's length is not known
            when it is compiled.
        source: the JAX operation that it came from, as far as the compiler remembers.
    """

    op: str
    dtype: str
    shape: tuple[int, ...]
    group: int
    inside_loop: bool
    trips: int | None
    source: str

    @property
    def bytes(self) -> int:
        """Of the array, on one device."""
        return math.prod(self.shape) * bits_of(self.dtype) // 8

    @property
    def wire(self) -> float:
        """Bytes that a device sends each time, where the group is a ring."""
        if self.op in ("collective-permute", "collective-broadcast"):
            return float(self.bytes)
        rounds = 2 if self.op == "all-reduce" else 1
        return rounds * self.bytes * (self.group - 1) / self.group


def collectives(text: str) -> list[Collective]:
    """Every collective of one compiled program's text, in its order."""
    computations = computations_of(text)
    devices = re.search(r"num_partitions=(\d+)", text)
    n_devices = int(devices[1]) if devices else 1
    runs = runs_of(computations)
    outputs: dict[Any, list[Collective]] = {}
    for name, lines in computations.items():
        if name not in runs:
            continue
        # On TPU a reduce-scatter is a fusion of this name around an all-reduce.
        scattered = name.startswith("all-reduce-scatter")
        for line in lines:
            source, channel = (re.search(p, line) for p in (_SOURCE, r"channel_id=(\d+)"))
            arrays = [
                Collective(
                    "reduce-scatter" if scattered and op == "all-reduce" else op,
                    *(dtype, shape, group, *runs[name]),
                    source[1] if source else "",
                )
                for op, dtype, shape, group in _arrays(line, n_devices)
            ]
            # One that is spread over several fusions, to run beside them, is in each of these.
            outputs.setdefault(channel[1] if channel else len(outputs), arrays)
    return [one for arrays in outputs.values() for one in arrays]


_SOURCE = r'op_name="([^"]*)"'
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?[\w.\-]+ = (?P<type>.*?) (?P<op>" + "|".join(OPS) + r")(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")


def _arrays(line: str, n_devices: int) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """``(op, dtype, shape, group)`` of each array of an instruction that is a collective."""
    match = _INSTRUCTION.match(line)
    if match is None:
        return
    op, parts = match["op"], _parts(match["type"])
    if match["start"] and op != "all-reduce" and len(parts) > 1:
        parts = _parts(parts[1])  # (operands, results, what the runtime keeps)
    arrays = [
        (dtype, _dimensions(sizes)) for part in parts for dtype, sizes in _ARRAY.findall(part)
    ]
    group = _group(line, n_devices)
    if op == "all-to-all" and len(arrays) > 1:
        # One operand a device: together they are the array.
        arrays = [(arrays[0][0], (len(arrays), *arrays[0][1]))]
    for dtype, shape in arrays:
        if op == "reduce-scatter":
            axis = re.search(r"dimensions=\{(\d+)\}", line)
            shape = tuple(
                n * group if axis and i == int(axis[1]) else n for i, n in enumerate(shape)
            )
        yield op, dtype, shape, group


def _parts(text: str) -> list[str]:
    """The elements of a tuple's type; a type that is no tuple is its own."""
    if not text.startswith("("):
        return [text]
    parts, depth = [""], 0
    for character in text[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [re.sub(r"/\*.*?\*/", "", part).strip() for part in parts]


def _dimensions(sizes: str) -> tuple[int, ...]:
    return tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)


def bits_of(dtype: str) -> int:
    """How many bits a number of XLA's type takes; a token or an opaque value takes none."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 0


def _group(line: str, n_devices: int) -> int:
    """How many devices one group of a collective has."""
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(iota[2])
    # Devices in another order than by number are listed between the mesh and its axes.
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    return n_devices


def computations_of(text: str) -> dict[str, list[str]]:
    """The program's computations by name; the one that is run comes under ``ENTRY``."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$", line)
        if head and " = " not in line.split("->")[0]:
            lines = computations.setdefault("ENTRY" if head[1] else head[2], [])
        else:
            lines.append(line)
    return computations


_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)


def runs_of(computations: dict[str, list[str]]) -> dict[str, tuple[bool, int | None]]:
    """For every computation that is run: whether a loop runs it, and how often."""
    runs: dict[str, tuple[bool, int | None]] = {}
    waiting: list[tuple[str, bool, int | None]] = [("ENTRY", False, 1)]
    while waiting:
        name, inside, times = waiting.pop()
        if name in runs or name not in computations:
            continue
        runs[name] = inside, times
        for line in computations[name]:
            calls = {kind: one for kind, one, _ in _CALLED.findall(line) if kind}
            several = [one for _, _, one in _CALLED.findall(line) if one]
            if "body" in calls:
                parts = (computations.get(calls.get(k, ""), []) for k in ("condition", "body"))
                n = _length(line, *parts)
                loop = None if n is None or times is None else n * times
                waiting += [(calls[kind], True, loop) for kind in ("body", "condition")]
                continue
            names = [*calls.values(), *re.findall(r"[\w.\-]+", ",".join(several))]
            waiting += [(called, inside, times) for called in names]
    return runs


def _length(line: str, condition: list[str], body: list[str]) -> int | None:
    """How often a ``while`` runs: by the compiler's own note, or by what its counter, from zero, is
    compared with, where that is one constant."""
    if note := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(note[1])
    limits = [m[1] for text in condition if (m := re.search(_NUMBER, text))]
    counted = any("direction=LT" in text for text in condition)
    if not counted or len(limits) != 1:
        return None
    return -(-int(limits[0]) // _stride(condition, body))


_NUMBER = r"[su]32\[\]\S* constant\((\d+)\)"


def _stride(condition: list[str], body: list[str]) -> int:
    """By how much a loop's counter grows in its body: by more than one where it was unrolled."""
    place = re.search(r"get-tuple-element\(\S*\), index=(\d+)", "\n".join(condition))
    results = re.search(r"ROOT .* tuple\(([^)]*)\)", "\n".join(body))
    if place is None or results is None:
        return 1
    counter = re.findall(r"[\w.\-]+", re.sub(r"/\*.*?\*/", "", results[1]))[int(place[1])]
    defined = {m[1]: text for text in body if (m := re.match(r"\s*%?([\w.\-]+) = ", text))}
    terms = re.search(r" add\(([^)]*)\)", defined.get(counter, ""))
    for name in re.findall(r"%?([\w.\-]+)", terms[1]) if terms else ():
        if number := re.search(_NUMBER, defined.get(name, "")):
            return int(number[1])
    return 1
