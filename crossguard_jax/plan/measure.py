"""A program's figures: traced and compiled once, and what the compiler made of it kept."""

import gzip
import hashlib
import json
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from crossguard_jax.core.collectives import collectives
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.plan.chips import GIB, Machine
from crossguard_jax.plan.flops import flops
from crossguard_jax.plan.jobs import Program
from crossguard_jax.plan.models import bytes_a_device
from crossguard_jax.plan.traffic import traffic

_FIELDS = {
    "argument": "arguments",
    "output": "outputs",
    "temp": "temporaries",
    "alias": "aliased",
}
_COMPILERS = ("jaxlib", "libtpu", "jax-cuda12-plugin")


@dataclass(frozen=True)
class Sent:
    """Collectives of one kind and shape.

    Attributes:
        op, dtype, shape, group: as `core.collectives.Collective` has them.
        times: how many there are in a run.
        wire: bytes that a device sends by all of them.
        in_loop: whether a layer of a stack does it.
    """

    op: str
    dtype: str
    shape: tuple[int, ...]
    group: int
    times: int
    wire: float
    in_loop: bool


@dataclass(frozen=True)
class Compiled:
    """What a compiled program takes; bytes are a device's.

    Attributes:
        name: the program's.
        rows: of its batch, over all devices.
        kinds: bytes of its arguments, by what they are.
        beside: bytes of what lies there meanwhile and is no argument of it.
        arguments, outputs, temporaries, aliased: bytes, by the compiler.
        flops: that it computes, over all devices.
        needed: that it would compute if it repeated nothing.
        moved: bytes from and to memory.
        sent: its collectives.
        seconds: that it took to compile.
        refused: what the compiler said where the program does not fit.
    """

    name: str
    rows: int
    kinds: Mapping[str, int]
    flops: float
    needed: float
    arguments: int = 0
    outputs: int = 0
    temporaries: int = 0
    aliased: int = 0
    moved: float = 0.0
    sent: tuple[Sent, ...] = field(default_factory=tuple)
    seconds: float = 0.0
    refused: str = ""
    beside: Mapping[str, int] = field(default_factory=dict)

    @property
    def memory(self) -> float:
        """Bytes that a device must have: of a program that was refused, as far as was said."""
        beside = sum(self.beside.values())
        if not self.refused:
            own = self.arguments + self.outputs + self.temporaries - self.aliased
            return float(own + beside)
        sizes = re.findall(r"([\d.]+)([KMG])\b", self.refused)
        units = {"K": 2**10, "M": 2**20, "G": GIB}
        temporaries = max((float(n) * units[unit] for n, unit in sizes[:1]), default=0.0)
        return beside + temporaries + sum(self.kinds.values()) * ("Used" not in self.refused)

    @property
    def wire(self) -> float:
        """Bytes that a device sends."""
        return math.fsum(each.wire for each in self.sent)


def measure(program: Program, bare: Program, target: Machine) -> Compiled:
    """Traces and compiles a program, or finds what an earlier run compiled of the same.

    Args:
        program: what is run.
        bare: the same without rematerialization, whose work is what is needed.
        target: what it is compiled for.
    """
    traced = program.run.trace(*program.arguments)
    needed = (traced if bare is program else bare.run.trace(*bare.arguments)).jaxpr
    lowered = traced.lower()
    place = _kept(lowered.as_text(), target)
    if not place.with_suffix(".json").is_file():
        _compile(lowered, place)
    stats = json.loads(place.with_suffix(".json").read_text())
    text = gzip.decompress(place.with_suffix(".txt.gz").read_bytes()).decode()
    return Compiled(
        program.name,
        program.rows,
        _bytes(program.kinds),
        flops(traced.jaxpr, program.trips),
        flops(needed, program.trips),
        **stats,
        moved=traffic(text, program.trips),
        sent=_sent(text, program.trips),
        beside=_bytes(program.beside),
    )


def _bytes(trees: Mapping[str, Any]) -> dict[str, int]:
    return {name: bytes_a_device(tree) for name, tree in trees.items() if tree is not None}


def _compile(lowered: Any, place: Path) -> None:
    """Leaves the memory that a program takes, and its text, which is empty if it does not fit."""
    start = time.monotonic()
    text = ""
    stats: dict[str, Any] = {}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        stats["refused"] = str(error).strip().partition("\n")[0]
    else:
        memory, text = compiled.memory_analysis(), compiled.as_text()
        for name in ("argument", "output", "temp", "alias"):
            stats[_FIELDS[name]] = getattr(memory, f"{name}_size_in_bytes")
    stats["seconds"] = time.monotonic() - start
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place.with_suffix(".txt.gz"), gzip.compress(text.encode()))
    write_atomic(place.with_suffix(".json"), json.dumps(stats) + "\n")


def _sent(text: str, trips: int) -> tuple[Sent, ...]:
    counts: dict[tuple[Any, ...], int] = defaultdict(int)
    wires: dict[tuple[Any, ...], float] = defaultdict(float)
    for one in collectives(text):
        key = one.op, one.dtype, one.shape, one.group, one.inside_loop
        times = trips if one.trips is None else one.trips
        counts[key] += times
        wires[key] += times * one.wire
    return tuple(
        Sent(*key[:4], times=counts[key], wire=wires[key], in_loop=key[4])
        for key in sorted(counts, key=lambda key: -wires[key])
    )


def _kept(text: str, target: Machine) -> Path:
    """Where the figures of a program lie: its text says all that they depend on, but for the
    compiler and what it is for."""
    where = os.environ.get("CROSSGUARD_PLANS") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "crossguard_jax/plans"
    )
    whole = "\n".join([target.name, *map(_version, _COMPILERS), text])
    return Path(where) / f"{hashlib.sha256(whole.encode()).hexdigest()[:32]}"


def compilers() -> str:
    """The versions of those that may have compiled a program."""
    return ", ".join(f"{name} {number}" for name in _COMPILERS if (number := _version(name)))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
