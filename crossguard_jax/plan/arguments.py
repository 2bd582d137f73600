"""The arguments of ``plan``, as argparse declares them."""

import argparse

CONFIGS = "configs/guard.py, configs/cmai.py or configs/impforge.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE:VARIANT",
        help=f"one of {CONFIGS}, or your own; change a field of it with --config.FIELD=VALUE",
    )
    add(
        "--topology",
        metavar="NAME",
        help="v5litepod-16, v6e-8 (chips), v4-8, v5p-16, tpu7x-8 (cores, two a chip), h100-8, "
        "h200-8, a100-8",
    )
    parser.set_defaults(
        config_file="configs/guard.py", config_fields=("optim", "mesh", "axis_rules")
    )
    add(
        "--kind",
        action="append",
        choices=("sft", "mbat", "ppo", "score", "attack"),
        help="what is planned; may be repeated (default: all that the configuration is of)",
    )
    add(
        "--mesh",
        metavar="AXIS=N,...",
        help="devices along data, fsdp and tensor, -1 for the rest (default: as the config says)",
    )
    add("--rows", type=int, default=0, metavar="N", help="of a batch over all devices")
    add("--length", type=int, default=0, metavar="N", help="tokens of a row (default: the longest)")
    add("--remat", choices=("none", "names", "dots", "full"), help="default: as the config says")
    add("--json", metavar="FILE", help="write the figures there, too")
    add("--search", action="store_true", help="rank meshes, remat, rows and accumulation")
    add("--tries", type=int, default=4, metavar="N", help="candidates to compile (default: 4)")
    add(
        "--table",
        action="store_true",
        help="make this package's own tables: the 7B models on three slices, and weak scaling",
    )
    add("--out", metavar="FOLDER", default="runs/plan", help="of --table (default: runs/plan)")
