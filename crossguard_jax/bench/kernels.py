"""What a program's time went into, by the kernels that the profiler saw."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

KINDS = {
    "attention": "fmha|flash|sdpa|cudnn",
    "products": "gemm|nvjet|cutlass|xmma|matmul|dot",
    "copies": "memcpy|memset|copy|transpose",
}
"""Regular expressions of kernels' names, the first that matches counts; the rest is elementwise
work and sums (norms, rotations, activations, losses, the optimizer)."""


def kernel_seconds(run: Callable[[], object]) -> dict[str, float]:
    """Seconds of every kernel of one call, by the kernel's name and its instruction's.

    Args:
        run: waits for what it started.

    Returns:
        Of the first GPU where there is one, else of the processor's threads; the longest first.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        return read_kernels(ProfileData.from_file(str(file)).planes)


def read_kernels(planes: Iterable[Any]) -> dict[str, float]:
    """See `kernel_seconds`."""
    by_name = {plane.name: plane for plane in planes}
    gpu = by_name.get("/device:GPU:0")
    seconds: dict[str, float] = defaultdict(float)
    for line in (by_name["/host:CPU"] if gpu is None else gpu).lines:
        # Beside a GPU's streams lie sums of them.
        if gpu is not None and not line.name.startswith("Stream"):
            continue
        for event in line.events:
            operation = dict(event.stats).get("hlo_op")
            # On a processor what holds others is there beside them, and an end is an event.
            if gpu is None and (operation is None or re.match("end:|while|call|cond", event.name)):
                continue
            name = event.name if operation in (None, event.name) else f"{event.name} {operation}"
            seconds[name] += event.duration_ns / 1e9
    return dict(sorted(seconds.items(), key=lambda pair: -pair[1]))


def shares(kernels: dict[str, float], wall: float) -> dict[str, float]:
    """The part of ``wall`` seconds in each of `KINDS`, in the rest and in nothing (``idle``)."""
    seconds = dict.fromkeys((*KINDS, "rest"), 0.0)
    for name, spent in kernels.items():
        kinds = (kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.I))
        seconds[next(kinds, "rest")] += spent
    seconds["idle"] = max(wall - sum(seconds.values()), 0.0)
    return {kind: spent / wall for kind, spent in seconds.items()}
