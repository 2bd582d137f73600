"""Meshes, remat policies, batches and accumulation, ranked: cheaply at first, then compiled."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import make_mesh
from crossguard_jax.core.tree import n_bytes
from crossguard_jax.hf.configs import read_config
from crossguard_jax.io.progress import Progress
from crossguard_jax.nn.llama import LlamaConfig
from crossguard_jax.nn.llava import LlavaConfig
from crossguard_jax.plan.chips import Machine
from crossguard_jax.plan.jobs import Job
from crossguard_jax.plan.models import find_folder
from crossguard_jax.plan.planning import Forecast, make_plan, microbatches_of
from crossguard_jax.plan.programs import programs_of

TRIES = 4
"""Candidates that are compiled at first, and again as many where none of these fits."""

_POLICIES = ("names", "full")


@dataclass(frozen=True)
class Choice:
    """A choice of all that is searched.

    Attributes:
        sizes: of the mesh's axes.
        remat: the policy; "" where nothing is differentiated.
        rows: of a batch.
        accumulate: its microbatches.
    """

    sizes: tuple[tuple[str, int], ...]
    remat: str
    rows: int
    accumulate: int

    @property
    def parts(self) -> int:
        """Over how many devices rows are spread."""
        return dict(self.sizes)["data"] * dict(self.sizes)["fsdp"]


@dataclass(frozen=True)
class Shape:
    """What the cheap ranking knows of a job.

    Attributes:
        base: bytes of all that is frozen.
        trained: bytes of what is trained, and of its moments.
        length: tokens of a row.
        text: the language model.
        trains: whether there is a backward pass.
    """

    base: int
    trained: int
    length: int
    text: LlamaConfig
    trains: bool


def candidates(
    devices: int,
    text: LlamaConfig,
    rows: Sequence[int],
    accumulate: Sequence[int],
    trains: bool,
    minibatches: int = 1,
) -> list[Choice]:
    """All that could be run: rows divide over minibatches, microbatches and devices, heads over
    ``tensor``."""
    sizes = [
        (("data", devices // (fsdp * tensor)), ("fsdp", fsdp), ("tensor", tensor))
        for tensor, fsdp in itertools.product(_divisors(devices), repeat=2)
        if devices % (fsdp * tensor) == 0 and text.num_key_value_heads % tensor == 0
    ]
    every = itertools.product(sizes, _POLICIES if trains else ("",), rows, accumulate)
    listed = [Choice(*each) for each in every]
    return [
        each for each in listed if each.rows % (minibatches * each.accumulate * each.parts) == 0
    ]


def _divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]


def estimate(each: Choice, shape: Shape, target: Machine) -> tuple[float, float]:
    """``(bytes a device, seconds a row)``, by formulas: good enough to rank by.

    Kept for the backward pass are a layer's input, or by "names" also its projections and the
    attention's context; weights are gathered layer by layer, once for every pass over them.
    """
    sizes, text = dict(each.sizes), shape.text
    fsdp, tensor = sizes["fsdp"], sizes["tensor"]
    width, inner = text.hidden_size, text.intermediate_size
    tokens = each.rows // (each.accumulate * each.parts) * shape.length
    weights = shape.base / text.num_hidden_layers
    kept = 0.0
    if shape.trains:
        named = (5 * width + 3 * inner) / tensor if each.remat == "names" else 0.0
        kept = 2.0 * tokens * text.num_hidden_layers * (width + named)
    working = 2 * weights / tensor + 2.0 * tokens * (6 * width + 4 * inner / tensor)
    held = shape.base / (fsdp * tensor) + shape.trained / fsdp
    passes = (3 if each.remat == "full" else 2) if shape.trains else 1
    gathered = each.accumulate * passes * shape.base / tensor * (fsdp - 1) / fsdp
    reduced = each.accumulate * passes * 2.0 * tokens * width * text.num_hidden_layers
    wire = gathered + 2 * reduced * 2 * (tensor - 1) / tensor
    products = passes * shape.base * tokens * each.accumulate / tensor
    moved = each.accumulate * passes * shape.base / tensor + 2 * kept
    seconds = [products / target.chip.flops, wire / target.wire, moved / target.chip.bandwidth]
    return held + kept + working, (max(seconds) + sum(seconds)) / 2 / each.rows


def ranked(
    every: Sequence[Choice], shape: Shape, target: Machine
) -> Iterator[tuple[Choice, float, float]]:
    """Those that may fit, the fastest first, with their estimates; the others behind them, the
    smallest first, since an estimate may be wrong."""
    guessed = [(each, *estimate(each, shape, target)) for each in every]
    room = 0.95 * target.chip.memory
    yield from sorted((g for g in guessed if g[1] <= room), key=lambda g: g[2])
    yield from sorted((g for g in guessed if g[1] > room), key=lambda g: g[1])


def search(
    config: Any,
    kind: str,
    target: Machine,
    devices: Sequence[Any],
    rows: int = 0,
    length: int = 0,
    tries: int = TRIES,
) -> list[Forecast]:
    """Compiles the most promising candidates; those that fit come first, the fastest ahead.

    Args:
        config, kind, target, devices, length: as in `planning.make_plan`.
        rows: of a batch; 0 tries the configuration's, its half, its double, and four times as many.
        tries: candidates to compile; where none of them fits, as many again.

    Raises:
        UserError: no candidate divides its rows over the devices.
    """
    shape, own = _shape_of(config, kind, devices, rows, length)
    _, minibatches = microbatches_of(config, kind)
    micro = (1,) if kind in ("score", "attack") else (1, 2, 4, 8)
    sizes = (rows,) if rows else tuple(sorted({max(own // 2, 1), own, 2 * own, 4 * own}))
    every = candidates(target.devices, shape.text, sizes, micro, shape.trains, minibatches)
    if not every:
        raise UserError(
            f"no batch of {', '.join(map(str, sizes))} rows divides over {target.devices} devices; "
            "give --rows"
        )
    plans: list[Forecast] = []
    order = ranked(every, shape, target)
    with Progress("compiling", 2 * tries, unit="candidate") as progress:
        for each, _, _ in itertools.islice(order, 2 * tries):
            if len(plans) >= tries and any(plan.fits for plan in plans):
                break
            chosen = _chosen(config, each)
            plans.append(
                make_plan(
                    *(chosen, kind, target, devices, dict(each.sizes)),
                    *(each.rows, length, each.remat),
                )
            )
            progress.update(note=plans[-1].name)
    return sorted(plans, key=lambda plan: (not plan.fits, -plan.rows_a_second))


def _chosen(config: Any, each: Choice) -> Any:
    chosen = config.copy_and_resolve_references()
    chosen.optim.accumulate = each.accumulate
    return chosen


def _shape_of(
    config: Any, kind: str, devices: Sequence[Any], rows: int, length: int
) -> tuple[Shape, int]:
    """What the ranking must know, and the configuration's own rows."""
    mesh = make_mesh(1, devices=[*devices[:1]])
    program = programs_of(kind, Job(config, mesh, rows, length))[-1]
    frozen = [tree for name, tree in program.kinds.items() if name not in _TRAINED]
    trained = [tree for name, tree in program.kinds.items() if name in _TRAINED[:2]]
    section = config.rewriter if kind == "ppo" else config.model
    _, model = read_config(find_folder(section.path))
    text = model.text if isinstance(model, LlavaConfig) else model
    assert isinstance(text, LlamaConfig)
    sizes = (sum(n_bytes(tree) for tree in jax.tree.leaves(trees)) for trees in (frozen, trained))
    base, moved = sizes
    return Shape(base, moved, program.length, text, kind != "score"), program.rows


_TRAINED = ("adapters", "optimizer", "batch")
