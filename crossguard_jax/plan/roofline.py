"""From figures to time, and what to change where a program does not fit.

Three things bound a step: products at the chip's rate, bytes at its memory's, bytes at its links'.
If all three go on at once, the longest is the step; if none do, it is their sum. What is measured
lies between, and products never reach the rate they are sold by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crossguard_jax.plan.chips import Machine
from crossguard_jax.plan.measure import Compiled


@dataclass(frozen=True)
class Roofline:
    """Seconds that a program takes.

    Attributes:
        compute, memory, wire: of each bound alone.
        needed: of the products that are needed, at the chips' rate.
    """

    compute: float
    memory: float
    wire: float
    needed: float

    @property
    def best(self) -> float:
        """All at once."""
        return max(self.compute, self.memory, self.wire)

    @property
    def worst(self) -> float:
        """One after the other."""
        return self.compute + self.memory + self.wire

    @property
    def bound(self) -> str:
        """What takes longest."""
        sizes = {"products": self.compute, "memory": self.memory, "links": self.wire}
        return max(sizes, key=lambda name: sizes[name])

    @property
    def mfu(self) -> tuple[float, float]:
        """Model FLOPs utilization, one after the other and all at once."""
        return self.needed / self.worst, self.needed / self.best


def roofline(programs: Sequence[Compiled], target: Machine) -> Roofline:
    """Of programs that run one after the other."""
    chip, n = target.chip, target.devices
    return Roofline(
        math.fsum(p.flops for p in programs) / (n * chip.flops),
        math.fsum(p.moved for p in programs) / chip.bandwidth,
        math.fsum(p.wire for p in programs) / target.wire,
        math.fsum(p.needed for p in programs) / (n * chip.flops),
    )


def fits(programs: Sequence[Compiled], target: Machine) -> bool:
    """Whether the compiler took every program, and each has room."""
    return all(not p.refused and p.memory <= target.chip.memory for p in programs)


def advice(
    programs: Sequence[Compiled], target: Machine, sizes: dict[str, int], remat: str, trains: bool
) -> list[str]:
    """What to change, the cheapest first, where something does not fit.

    Args:
        programs: the figures.
        target: what they are for.
        sizes: of the mesh's axes.
        remat: the policy.
        trains: whether there is a backward pass.
    """
    if fits(programs, target):
        return []
    worst = max(programs, key=lambda p: p.memory)
    held, room = sum(worst.kinds.values()), target.chip.memory
    base, parts = worst.kinds.get("base", 0), sizes["fsdp"] * sizes["tensor"]
    words = []
    if held > 0.6 * room and sizes["data"] > 1:
        words.append(f"--mesh data=1,fsdp={sizes['data'] * sizes['fsdp']},...: the base in parts")
    elif held > 0.6 * room and parts == target.devices:
        words.append(f"more chips: {base / 2**30:.1f} GiB of the base are on each of {parts}")
    if trains and remat not in ("full", ""):
        words.append("--remat full: layers are computed twice, and their inputs alone kept")
    rows = worst.rows // max(sizes["data"] * sizes["fsdp"], 1)
    if rows > 1:
        words.append(
            f"{rows} rows are on a chip: fewer (--rows), or one after the other "
            "(--config.optim.accumulate)"
        )
    elif sizes["tensor"] < 8:
        words.append("--mesh ...,tensor=2: a row's work on several chips")
    return [*words, "--search: ranks all of it"]
