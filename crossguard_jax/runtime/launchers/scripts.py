"""What the scripts of all launchers share: checked values, the environment, the command itself."""

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime.exits import STARTS_AGAIN
from crossguard_jax.runtime.flags import positive

AGAIN_PATTERN = "|".join(map(str, STARTS_AGAIN))
"""For a shell's ``case``: the exit codes after which a run is started again."""
APPENDED = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Variables that are lists of flags: what a machine or an image says already stays."""
FORGET_SLICES = (
    "# Of an earlier job on this machine, these would have this one wait for its slices.",
    'unset "${!MEGASCALE_@}"',
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+,=-]*")


@dataclass(frozen=True)
class Submission:
    """What a launcher does.

    Attributes:
      files: paths and texts, to be written before anything runs.
      commands: argument vectors, run in this order until one fails.
      notes: what a reader should know, a line each.
    """

    files: Mapping[Path, str]
    commands: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default=())


def refuse_line_breaks(words: Sequence[str]) -> None:
    """Stops at a value with a line break or another control character, which would end a line of a
    script or of a YAML file and begin a new one.

    Raises:
      UserError: with the value.
    """
    for word in words:
        if not word.isprintable():
            raise UserError(
                f"--on: the argument {word!r} has a line break or a control character: take it out"
            )


def job_name(text: str) -> str:
    """An argparse type: the name of a job, as Kubernetes, Slurm and file systems all take it."""
    if len(text) > 40 or not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name: at most 40 of a-z, 0-9 and -, a letter first, no - last"
        )
    return text


def one_word(text: str) -> str:
    """An argparse type: one word, as clusters name their queues, zones, images and kinds of GPU."""
    if not _WORD.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one word of letters, digits and . _ : / @ + , = -"
        )
    return text


def assignment(text: str) -> tuple[str, str]:
    """An argparse type: ``NAME=VALUE``."""
    key, equals, value = text.partition("=")
    if not equals or not _VARIABLE.fullmatch(key):
        raise argparse.ArgumentTypeError(f"{text!r}: needs NAME=VALUE")
    return key, value


def label(text: str) -> tuple[str, str]:
    """An argparse type: ``LABEL=VALUE`` of Kubernetes, whose labels have dots and slashes."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: needs LABEL=VALUE")
    return one_word(key), one_word(value)


def add_shared_arguments(parser: argparse.ArgumentParser, cache: str) -> None:
    """Declares what every launcher takes.

    Args:
      parser: the launcher's.
      cache: help for ``--cache``: where it is by default.
    """
    parser.add_argument(
        "--dry-run", action="store_true", help="print every file and command, and do nothing"
    )
    parser.add_argument(
        "--name",
        type=job_name,
        help="of the job and its folder runs/launch/NAME (default: its verb)",
    )
    parser.add_argument(
        "--accelerator",
        choices=("cpu", "cuda", "tpu"),
        help="which jax the job installs (default: by what it is given)",
    )
    parser.add_argument("--cache", metavar="FOLDER", help=f"compiled programs, shared: {cache}")
    parser.add_argument(
        "--env",
        metavar="NAME=VALUE",
        type=assignment,
        action="append",
        default=[],
        help="a variable of the job, may be given again; XLA_FLAGS and LIBTPU_INIT_ARGS are added "
        "to what is there",
    )
    parser.add_argument(
        "--setup",
        metavar="COMMAND",
        help="a shell command for each host first: loads a module, installs Python 3.12",
    )


def add_array(parser: argparse.ArgumentParser) -> None:
    """Declares ``--array``, of launchers whose tasks can each be a run of its own."""
    parser.add_argument(
        "--array",
        type=positive,
        metavar="N",
        help="so many tasks that know nothing of one another, for a verb with --shards --on array",
    )


def check_shards(args: argparse.Namespace, processes: int) -> None:
    """Ends with a usage error where a verb over shards and the processes do not fit together.

    Args:
      args: the launcher's arguments.
      processes: how many the job has, or each task of an array.
    """
    ways = "--on slurm|k8s --array N before the verb and --on array after it"
    is_part = "--on=array" in args.rest or ("--on", "array") in zip(
        args.rest, args.rest[1:], strict=False
    )
    if bool(getattr(args, "array", None)) != is_part:
        usage(args, f"{ways} go together")
    over_shards = any(word.partition("=")[0] == "--shards" for word in args.rest)
    if processes > 1 and (over_shards or args.verb == "sweep"):
        usage(
            args,
            f"{args.verb}: each of {processes} processes would do all shards: ask for one process "
            f"(--on local or ray after the verb finds it workers), or for tasks: {ways}",
        )


def need(args: argparse.Namespace, option: str, mend: str) -> str:
    """The value of an option that has to be given.

    Raises:
      SystemExit: it was not; one line says so.
    """
    value = getattr(args, option.replace("-", "_"))
    if not value:
        usage(args, f"--on {args.on} needs --{option}: {mend}")
    return value


def usage(args: argparse.Namespace, message: str) -> NoReturn:
    """Ends with a usage error of one line."""
    args.usage_error(message)
    raise AssertionError("a parser's error() does not return")


def quote(value: object) -> str:
    """A value as one word of a shell's command line."""
    return shlex.quote(str(value))


def exports(args: argparse.Namespace, nodes: str) -> list[str]:
    """Lines of a script that set a process's environment.

    Args:
      args: the launcher's arguments.
      nodes: how many hosts there are, as a word of the shell.
    """
    lines = [f"export CROSSGUARD_NODES={nodes}"]
    if args.cache:
        lines.append(f"export JAX_COMPILATION_CACHE_DIR={quote(args.cache)}")
    for key, value in args.env:
        old = f'"${{{key}:+${key} }}"' if key in APPENDED else ""
        lines.append(f"export {key}={old}{quote(value)}")
    return lines


def setup(args: argparse.Namespace) -> list[str]:
    """The line of a script that is the user's own ``--setup``, if there is one."""
    return [args.setup] if args.setup else []


def command(args: argparse.Namespace, run: object = "launch/run.sh") -> str:
    """The verb as the job runs it.

    Args:
      args: the launcher's arguments.
      run: the path of ``launch/run.sh`` there.
    """
    words = [run, "--accelerator", args.accelerator, args.verb, *args.rest]
    return " ".join(map(quote, words))


def script(*lines: str) -> str:
    """A bash script of these lines."""
    return "\n".join(("#!/usr/bin/env bash", *lines)) + "\n"
