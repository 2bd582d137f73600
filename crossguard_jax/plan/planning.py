"""A plan: a configuration's programs on a mesh of chips, their figures, and how they read."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crossguard_jax.core.errors import check_divides
from crossguard_jax.core.sharding import even_parts, make_mesh
from crossguard_jax.plan.chips import GIB, Machine
from crossguard_jax.plan.jobs import Job
from crossguard_jax.plan.measure import Compiled, measure
from crossguard_jax.plan.programs import programs_of
from crossguard_jax.plan.roofline import Roofline, advice, fits, roofline

SENT_SHOWN = 8
"""Kinds of collectives that are listed; all are counted."""


ESTIMATE = (
    "  estimate  compiled without a card: attention is XLA's own, since cuDNN's wants one, so that "
    "temporaries and traffic run high; nothing is autotuned"
)


@dataclass(frozen=True)
class Forecast:
    """What is known of a configuration on chips.

    Attributes:
        kind: a name in `programs.KINDS`.
        target: the chips.
        sizes: of the mesh's axes.
        rows, length: of a batch.
        remat: the policy.
        accumulate: microbatches of a step.
        programs: their figures, in the order in which they run.
    """

    kind: str
    target: Machine
    sizes: dict[str, int]
    rows: int
    length: int
    remat: str
    accumulate: int
    programs: tuple[Compiled, ...]

    @property
    def roofline(self) -> Roofline:
        """Of all programs together."""
        return roofline(self.programs, self.target)

    @property
    def fits(self) -> bool:
        """Whether every program has room."""
        return fits(self.programs, self.target)

    @property
    def memory(self) -> float:
        """Bytes a device, of the program that takes most."""
        return max(p.memory for p in self.programs)

    @property
    def rows_a_second(self) -> float:
        """Half-way between all at once and one after the other."""
        return 2 * self.rows / (self.roofline.best + self.roofline.worst)

    @property
    def name(self) -> str:
        """The choices, in a line."""
        mesh = ",".join(f"{axis}={size}" for axis, size in self.sizes.items())
        micro = f" in {self.accumulate}" if self.accumulate > 1 else ""
        remat = f", remat {self.remat}" if self.remat else ""
        return f"{mesh}, {self.rows} rows{micro} of {self.length} tokens{remat}"

    def lines(self) -> Iterator[str]:
        """What is printed."""
        chip = self.target.chip
        yield f"{self.kind} on {self.target.name}, {self.target.devices} x {chip.name}: {self.name}"
        for program in self.programs:
            yield from _program_lines(program, self.target)
        yield from _time_lines(self)
        trains = self.kind not in ("score", "attack")
        if self.target.slice is None:
            yield ESTIMATE
        for each in advice(self.programs, self.target, self.sizes, self.remat, trains):
            yield f"  change    {each}"

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        line = self.roofline
        return {
            "kind": self.kind,
            "topology": self.target.name,
            "devices": self.target.devices,
            "mesh": self.sizes,
            "rows": self.rows,
            "length": self.length,
            "remat": self.remat,
            "accumulate": self.accumulate,
            "fits": self.fits,
            "memory_bytes": self.memory,
            "memory_limit_bytes": self.target.chip.memory,
            "seconds": {"at_once": line.best, "one_by_one": line.worst, **asdict(line)},
            "mfu": line.mfu,
            "programs": [_as_dict(program) for program in self.programs],
        }


def make_plan(
    config: Any,
    kind: str,
    target: Machine,
    devices: Sequence[Any],
    sizes: dict[str, int] | None = None,
    rows: int = 0,
    length: int = 0,
    remat: str = "",
) -> Forecast:
    """Compiles a configuration's programs of a kind, or finds their figures.

    Args:
        config: the configuration.
        kind: a name in `programs.KINDS`.
        target, devices: what they are compiled for.
        sizes: of the mesh's axes, one of them perhaps -1; None is the configuration's.
        rows, length, remat: as `programs.Job` has them.

    Raises:
        UserError: sizes that do not multiply to the devices, or what a program refuses.
    """
    mesh = make_mesh(**(sizes or dict(config.mesh)), devices=[*devices])
    attention = "xla" if target.slice is None else "auto"
    jobs = [Job(config, mesh, rows, length, policy, attention) for policy in (remat, "none")]
    programs, bare = (programs_of(kind, job) for job in jobs)
    n = programs[0].rows
    accumulate, minibatches = microbatches_of(config, kind)
    check_divides("ppo.settings.minibatches", minibatches, "--rows", n)
    accumulate = even_parts("--rows", n // minibatches, accumulate, mesh, jobs[0].rules)
    measured = [measure(each, plain, target) for each, plain in zip(programs, bare, strict=True)]
    section = config.rewriter if kind == "ppo" else config.model
    return Forecast(
        kind,
        target,
        dict(mesh.shape),
        n,
        programs[0].length,
        "" if kind == "score" else remat or section.remat,
        accumulate,
        tuple(measured),
    )


def _as_dict(program: Compiled) -> dict[str, Any]:
    """Figures as JSON has them; of what is sent, the kinds that matter."""
    large = [asdict(each) for each in program.sent if each.wire > 0.002 * program.wire]
    return asdict(program) | {"memory": program.memory, "wire": program.wire, "sent": large}


def microbatches_of(config: Any, kind: str) -> tuple[int, int]:
    """Microbatches that a gradient is summed over, and minibatches that each have their own."""
    if kind in ("score", "attack"):
        return 1, 1
    return config.optim.accumulate, config.ppo.settings.minibatches if kind == "ppo" else 1


def _program_lines(program: Compiled, target: Machine) -> Iterator[str]:
    room = target.chip.memory / GIB
    if program.refused:
        yield f"  {program.name}: does not fit; the compiler says: {program.refused}"
        yield f"    memory    {_kinds(program)}; of {room:.2f} GiB"
        return
    verdict = "fits" if program.memory <= target.chip.memory else "does not fit"
    yield f"  {program.name}: {verdict}, {program.memory / GIB:.2f} of {room:.2f} GiB a device"
    # Layouts round shapes up.
    padding = program.arguments - sum(program.kinds.values())
    more = f", padding and the rest {padding / GIB:.2f}" if padding > 0.01 * GIB else ""
    temporaries = f", temporaries {program.temporaries / GIB:.2f} GiB"
    yield f"    memory    {_kinds(program)}{more}{temporaries}"
    again = program.flops / program.needed - 1
    yield (
        f"    work      {program.flops / 1e12:,.4g} TFLOP, of which {again / (1 + again):.0%} is "
        f"done again; {program.moved / 1e9:,.4g} GB of memory traffic a device"
    )
    total = sum(each.times for each in program.sent)
    yield f"    sent      {program.wire / 1e9:,.4g} GB a device by {total:,} collectives"
    for each in program.sent[:SENT_SHOWN]:
        shape = ",".join(map(str, each.shape))
        place = "in layers" if each.in_loop else "outside"
        yield (
            f"              {each.times:5,} x {each.op} {each.dtype}[{shape}] among {each.group}, "
            f"{place}: {each.wire / 1e9:,.3g} GB"
        )
    if len(program.sent) > SENT_SHOWN:
        rest = program.sent[SENT_SHOWN:]
        wire = sum(each.wire for each in rest)
        yield f"              and {len(rest)} smaller kinds: {wire / 1e9:,.3g} GB"


def _kinds(program: Compiled) -> str:
    kinds = [f"{name} {size / GIB:.2f}" for name, size in program.kinds.items()]
    return ", ".join(kinds + [f"{k} (meanwhile) {v / GIB:.2f}" for k, v in program.beside.items()])


def _time_lines(plan: Forecast) -> Iterator[str]:
    line = plan.roofline
    if any(p.refused for p in plan.programs):
        return
    low, high = line.mfu
    yield (
        f"  time      {_seconds(line.best)} if all goes on at once, {_seconds(line.worst)} one by "
        f"one (products {_seconds(line.compute)}, memory {_seconds(line.memory)}, links "
        f"{_seconds(line.wire)}); bound by {line.bound}"
    )
    yield (
        f"  rate      {plan.rows / line.worst:,.4g} to {plan.rows / line.best:,.4g} rows/s, "
        f"MFU {low:.0%} to {high:.0%} at the chips' nominal rate"
    )


def _seconds(x: float) -> str:
    return f"{x:.3g} s" if x >= 1 else f"{1e3 * x:.3g} ms"
