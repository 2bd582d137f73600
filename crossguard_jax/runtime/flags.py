"""``--mesh``, ``--dtype`` and ``--remat``, the same for every verb that computes.

A verb with a configuration takes them as a short way to its fields; the others hand them to what
loads their models. Nothing heavy is imported, since ``--help`` answers at once.
"""

import argparse
from collections.abc import Iterator, Sequence

from crossguard_jax.core.errors import UserError

DTYPES = ("float32", "bfloat16", "float16", "int8", "int8-float32")
AXES = ("data", "fsdp", "tensor")


def positive(text: str) -> int:
    """An argparse type: how many, one at least."""
    return _number(text, 1)


def natural(text: str) -> int:
    """An argparse type: how many, none included."""
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r}: needs a whole number, at least {least}")
    return int(text)


def add_places(parser: argparse.ArgumentParser, remat: bool = False) -> None:
    """Declares ``--mesh`` and ``--dtype``, and ``--remat`` where gradients are taken.

    Args:
        parser: of a verb that loads models by itself.
        remat: whether it takes gradients.
    """
    group = parser.add_argument_group("where and how it computes")
    add_mesh(group)
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="of the arithmetic (default: auto, which is bfloat16 on accelerators and float32 on "
        "CPU)",
    )
    if remat:
        _remat(group)


def add_mesh(parser: argparse._ActionsContainer) -> None:
    """Declares ``--mesh`` alone, as `mesh.inference_mesh` takes it."""
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="devices along data, fsdp and tensor, -1 for the rest: those of one process, of which "
        "each then does a part of the rows, or all together (default: a copy of the model on every "
        "device)",
    )


def add_config_places(
    parser: argparse.ArgumentParser, dtype: Sequence[str], remat: Sequence[str] = ()
) -> None:
    """Declares them for a verb with a configuration, which says what they are by default.

    Args:
        parser: the verb's.
        dtype: the configuration's fields that ``--dtype`` sets.
        remat: those that ``--remat`` sets; none takes no gradient.
    """
    group = parser.add_argument_group("where and how it computes (default: as the config says)")
    group.add_argument(
        "--mesh", metavar="AXIS=N,...", help="devices along data, fsdp and tensor, -1 for the rest"
    )
    group.add_argument("--dtype", choices=DTYPES, help="of weights and arithmetic")
    if remat:
        _remat(group)
    parser.set_defaults(dtype_fields=tuple(dtype), remat_fields=tuple(remat))


def _remat(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--remat",
        choices=("none", "names", "dots", "full"),
        help="what of a forward pass is computed again for its gradient, to save memory",
    )


def overrides(args: argparse.Namespace) -> Iterator[str]:
    """The flags of `add_config_places` as overrides of a configuration."""
    if not hasattr(args, "dtype_fields"):
        return
    if args.mesh is not None:
        for axis, size in parse_mesh(args.mesh).items():
            yield f"--config.mesh.{axis}={size}"
    for flag, fields in (("dtype", args.dtype_fields), ("remat", args.remat_fields)):
        if fields and (value := getattr(args, flag)) is not None:
            yield from (f"--config.{field}={value}" for field in fields)


FOLDERS = ("out", "export_rewriter")
"""Arguments that name a folder to write to, which may be in a bucket."""
FILES = ("output", "queue", "store", "export", "page")
"""Those that are appended to, locked, or written by others too."""


def remote_folders(args: argparse.Namespace) -> dict[str, str]:
    """Addresses of buckets by the argument that names one, for `remote.staged`.

    Raises:
        UserError: by the flag, before an address becomes a folder of that name beside the program.
    """
    given = {name: getattr(args, name, None) for name in (*FOLDERS, *FILES)}
    addresses = {k: v for k, v in given.items() if isinstance(v, str) and "://" in v}
    elsewhere = (getattr(args, "on", None) or "local") != "local"
    for name, value in addresses.items():
        if name in FILES or elsewhere:
            flag, by = name.replace("_", "-"), f" by --on {args.on}" if elsewhere else ""
            raise UserError(
                f"--{flag} {value}: is written{by} through the file system; mount the bucket "
                "(gcsfuse, mountpoint-s3) and give its folder here"
            )
    return addresses


def parse_mesh(text: str) -> dict[str, int]:
    """``data=2,fsdp=-1`` as sizes by axis; an axis that is not named has 1.

    Raises:
        UserError: no such axis, an axis twice, or a size that is no number (-1: the rest).
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in AXES or name in sizes:
            raise UserError(f"--mesh {text}: write AXIS=N,... of {', '.join(AXES)}, each once")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise UserError(f"--mesh {text}: {name}={size} is no whole number") from None
    return dict.fromkeys(AXES, 1) | sizes
