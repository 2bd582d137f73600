"""A program's figures: traced and compiled once, and kept as JSON."""

import hashlib
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from crossguard_jax.core.collectives import collectives
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.plan.chips import GIB, Target
from crossguard_jax.plan.flops import flops
from crossguard_jax.plan.models import bytes_a_device
from crossguard_jax.plan.programs import Program
from crossguard_jax.plan.traffic import traffic

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
class Measured:
    """What a compiled program takes; bytes are a device's.

    Attributes:
        name: the program's.
        rows: of its batch, over all devices.
        kinds: bytes of its arguments, by what they are.
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

    @property
    def memory(self) -> float:
        """Bytes that a device must have: of a program that was refused, as far as was said."""
        if not self.refused:
            return float(self.arguments + self.outputs + self.temporaries - self.aliased)
        sizes = re.findall(r"([\d.]+)([KMG])\b", self.refused)
        units = {"K": 2**10, "M": 2**20, "G": GIB}
        temporaries = max((float(n) * units[unit] for n, unit in sizes[:1]), default=0.0)
        return temporaries if "Used" in self.refused else temporaries + sum(self.kinds.values())

    @property
    def wire(self) -> float:
        """Bytes that a device sends."""
        return math.fsum(each.wire for each in self.sent)


def measure(program: Program, bare: Program, target: Target) -> Measured:
    """Traces and compiles a program, or finds what an earlier run made of the same.

    Args:
        program: what is run.
        bare: the same without rematerialization, whose work is what is needed.
        target: what it is compiled for.
    """
    traced = program.run.trace(*program.arguments)
    lowered = traced.lower()
    place = _kept(lowered.as_text(), target, program)
    if place.is_file():
        stored = json.loads(place.read_text())
        sent = tuple(Sent(**s | {"shape": tuple(s["shape"])}) for s in stored.pop("sent"))
        return Measured(**stored, sent=sent)
    same = bare is program
    needed = (traced if same else bare.run.trace(*bare.arguments)).jaxpr
    measured = Measured(
        program.name,
        program.rows,
        {name: bytes_a_device(tree) for name, tree in program.kinds.items() if tree is not None},
        flops(traced.jaxpr, program.trips),
        flops(needed, program.trips),
        **_compiled(lowered, program.trips),
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, json.dumps(asdict(measured), indent=1) + "\n")
    return measured


def _compiled(lowered: Any, trips: int) -> dict[str, Any]:
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = str(error).strip().partition("\n")[0]
        return {"refused": line, "seconds": time.monotonic() - start}
    stats, text = compiled.memory_analysis(), compiled.as_text()
    return {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "moved": traffic(text, trips),
        "sent": _sent(text, trips),
        "seconds": time.monotonic() - start,
    }


def _sent(text: str, trips: int) -> tuple[Sent, ...]:
    counts: Counter[tuple[Any, ...]] = Counter()
    wires: Counter[tuple[Any, ...]] = Counter()
    for one in collectives(text):
        key = one.op, one.dtype, one.shape, one.group, one.inside_loop
        times = trips if one.trips is None else one.trips
        counts[key] += times
        wires[key] += times * one.wire
    return tuple(
        Sent(*key[:4], times=counts[key], wire=wires[key], in_loop=key[4])
        for key in sorted(counts, key=lambda key: -wires[key])
    )


def _kept(text: str, target: Target, program: Program) -> Path:
    """Where the figures of a program lie: its text says all that they depend on, but for the
    compiler and what it is for."""
    where = os.environ.get("CROSSGUARD_PLANS") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "crossguard_jax/plans"
    )
    whole = "\n".join(
        [target.name, program.name, str(program.trips), *map(_version, _COMPILERS), text]
    )
    return Path(where) / f"{hashlib.sha256(whole.encode()).hexdigest()[:32]}.json"


def compilers() -> str:
    """The versions of those that may have compiled a program."""
    return ", ".join(f"{name} {number}" for name in _COMPILERS if (number := _version(name)))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
