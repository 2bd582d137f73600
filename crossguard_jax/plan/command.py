"""``plan``: says what a configuration takes on chips, before they are rented."""

import argparse
import json
from collections.abc import Sequence

from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.plan.chips import devices_of, find_target
from crossguard_jax.plan.planning import Forecast, make_plan
from crossguard_jax.plan.programs import kinds_of
from crossguard_jax.plan.search import search
from crossguard_jax.runtime import preemption
from crossguard_jax.runtime.flags import parse_mesh

RANKED = 5
"""Plans of a search that are listed."""
GRACE = 1.0
"""Seconds to the end of a plan that is told to stop: what was compiled is kept as it comes."""


def main(args: argparse.Namespace) -> int:
    """Runs the verb.

    Returns:
        0 if what was planned fits, or a search has something that does; else 1.

    Raises:
        UserError: names, sizes or models that there are not, or no compiler.
        Stopped: told to stop; a compilation, which may take minutes, is not waited for.
    """
    preemption.listen(grace=GRACE)
    if args.table:
        from crossguard_jax.plan.tables import make_tables

        make_tables(args.out)
        return 0
    for flag in ("config", "topology"):
        if getattr(args, flag) is None:
            args.usage_error(f"give --{flag}, or --table")
    for flag, least in (("rows", 0), ("length", 0), ("tries", 1)):
        if getattr(args, flag) < least:
            args.usage_error(f"--{flag} {getattr(args, flag)}: {least} or more")
    target = find_target(args.topology)
    devices = devices_of(target)
    kinds = args.kind or kinds_of(args.config)
    plans, code = [], 0
    for kind in kinds:
        if args.search:
            some = search(*(args.config, kind, target, devices), args.rows, args.length, args.tries)
        else:
            sizes = parse_mesh(args.mesh) if args.mesh else None
            remat = args.remat or ""
            some = [
                make_plan(
                    *(args.config, kind, target, devices, sizes), args.rows, args.length, remat
                )
            ]
        print("\n".join([*_ranking(some), *some[0].lines()]), flush=True)
        plans += some
        code |= not some[0].fits
    if args.json:
        write_atomic(args.json, json.dumps([plan.as_dict() for plan in plans], indent=1) + "\n")
    return code


def _ranking(plans: Sequence[Forecast]) -> list[str]:
    """A line for each of a search's plans, the best first."""
    if len(plans) < 2:
        return []
    lines = [f"{plans[0].kind} on {plans[0].target.name}, ranked:"]
    for plan in plans[:RANKED]:
        room = f"{plan.memory / 2**30:.2f} GiB"
        rate = f"about {plan.rows_a_second:,.3g} rows/s" if plan.fits else "does not fit"
        lines.append(f"  {rate}, {room}: {plan.name}")
    return [*lines, ""]
