"""Bytes that a compiled program moves to and from a device's memory, read from its text.

Every instruction reads its operands and writes its result, times its loops' lengths; what a fusion
only slices is read as far as the slice goes, and what it updates in place is written as far. Arrays
that the compiler keeps on the chip (a TPU's VMEM) cost nothing.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from crossguard_jax.core.collectives import bits_of, computations_of, runs_of

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "iota", "partition-id", "replica-id", "after-all", "opt-barrier", "async-start"),
    *("copy-done", "slice-done", "async-done", "dynamic-slice-done", "dynamic-update-slice-done"),
    *("all-gather-done", "all-reduce-done", "collective-permute-done"),
}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")


@dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    op: str
    operands: Sequence[str]
    calls: str
    place: int

    @property
    def size(self) -> int:
        return _bytes(self.type)


def traffic(text: str, trips: int = 1) -> float:
    """Bytes that one device's memory takes and gives in a run of a program.

    Args:
        text: of ``jit(f).lower(...).compile().as_text()``.
        trips: how often a loop runs whose length the data decide.
    """
    bodies = {name: _parsed(lines) for name, lines in computations_of(text).items()}
    fused = {each.calls for body in bodies.values() for each in body.values() if each.calls}
    total = 0.0
    for name, (_, times) in runs_of(computations_of(text)).items():
        if name not in fused:
            body = bodies[name]
            moved = sum(_moved(each, body, bodies.get(each.calls, {})) for each in body.values())
            total += moved * (trips if times is None else times)
    return total


def _parsed(lines: Sequence[str]) -> dict[str, _Instruction]:
    parsed = {}
    for line in lines:
        if match := _INSTRUCTION.match(line):
            name, kind, op, rest = match.groups()
            arguments = re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0])
            calls = re.search(r"\bcalls=%?([\w.\-]+)", rest) if op == "fusion" else None
            place = int(rest.split(")", 1)[0]) if op == "parameter" else -1
            parsed[name] = _Instruction(name, kind, op, arguments, calls[1] if calls else "", place)
    return parsed


def _moved(
    each: _Instruction, body: dict[str, _Instruction], inner: dict[str, _Instruction]
) -> float:
    """What an instruction reads and writes, where ``inner`` is what its fusion does."""
    if each.op in _FREE:
        return 0.0
    sizes = [body[name].size if name in body else 0 for name in each.operands]
    if each.op.startswith("dynamic-slice") or each.op.startswith("slice"):
        return 2.0 * _first(each)
    if each.op == "dynamic-update-slice":
        return 2.0 * sizes[1]
    if each.op.endswith("-start"):
        return float(sizes[0] + _first(each)) if sizes else 0.0
    if not inner:
        return float(sum(sizes) + each.size)
    written = each.size
    read = dict(enumerate(sizes))
    for name, place in ((p.name, p.place) for p in inner.values() if p.place in read):
        users = [user for user in inner.values() if name in user.operands]
        if not users:
            continue
        if all(user.op == "dynamic-slice" for user in users):
            read[place] = min(read[place], sum(user.size for user in users))
        elif all(user.op == "dynamic-update-slice" and user.operands[0] == name for user in users):
            updates = [inner[user.operands[1]].size for user in users if user.operands[1] in inner]
            written = min(written, sum(updates)) if updates else written
            read[place] = 0
    return float(sum(read.values()) + written)


def _first(each: _Instruction) -> int:
    """The first array of what an instruction gives."""
    match = _ARRAY.search(each.type)
    return _bytes(match[0]) if match else 0


def _bytes(kind: str) -> int:
    """Of the arrays of a type that lie in the device's memory."""
    total = 0
    for dtype, sizes, layout in _ARRAY.findall(kind):
        if not re.search(r"S\([1-9]", layout):
            shape = [int(n.lstrip("<=")) for n in sizes.split(",") if n]
            total += math.prod(shape) * bits_of(dtype) // 8
    return total
