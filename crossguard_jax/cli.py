"""The command line: runs one verb of ``verbs.VERBS``, and turns errors into one line."""

import argparse
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from crossguard_jax.core.distributed import initialize_if_several
from crossguard_jax.core.errors import UserError
from crossguard_jax.verbs import VERBS

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
OVERRIDE = re.compile(r"--(no)?config\.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit code: 0, 1 (failed), 2 (usage) or 130 (interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        return _run(argv)
    except SystemExit as stop:  # argparse, after --help or a usage error
        return stop.code if isinstance(stop.code, int) else OK
    except BrokenPipeError:
        # The reader (`| head`) has left; Python's flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (UserError, OSError) as error:
        if debug:
            raise
        print(f"crossguard: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        if debug:
            raise
        print("crossguard: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(argv: list[str]) -> int:
    parser = _build_parser()
    named = next((word for word in argv if not word.startswith("-")), None)
    if named is None:
        parser.parse_args(argv)
        parser.print_help()
        return OK
    if named not in VERBS:
        nearest = get_close_matches(named, VERBS, n=1, cutoff=0.0)[0]
        parser.error(f"no verb {named!r}, did you mean {nearest!r}?")
    verb = VERBS[named]
    overrides: list[str] = []
    if not verb.passes_through:
        # They leave before argparse sees them, which takes one with a space in its value for a
        # positional argument.
        overrides = [word for word in argv if OVERRIDE.match(word)]
        argv = [word for word in argv if not OVERRIDE.match(word)]
    args, rest = parser.parse_known_args(argv)
    if verb.passes_through:
        args.rest = rest
    elif rest:
        args.usage_error(f"unknown argument {rest[0]!r}")
    if overrides and not hasattr(args, "config"):
        args.usage_error(f"takes no configuration, so no {overrides[0]}")
    if verb.uses_jax:
        initialize_if_several()
    if hasattr(args, "config"):
        from crossguard_jax.core.config import load_config

        args.config = load_config(args.config, overrides)
    code = _import(verb.handler)(args)
    return OK if code is None else code


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line that says where the help is."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _build_parser() -> _Parser:
    parser = _Parser(
        prog="crossguard",
        description="A guard for multimodal models, trained and immunized in JAX.",
        epilog="Every verb's own --help shows an example.",
    )
    verbs = parser.add_subparsers(metavar="VERB", title="verbs", prog="crossguard")
    subparsers = [parser]
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            epilog=f"example:\n  {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(sub)
        sub.set_defaults(verb=name, usage_error=sub.error)
        subparsers.append(sub)
    for each in subparsers:
        each.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _import(handler: str) -> Callable[[argparse.Namespace], int | None]:
    module, _, name = handler.partition(":")
    return getattr(importlib.import_module(module), name)


def run_tests(args: argparse.Namespace) -> int:
    """Runs pytest on the repository this package lies in, with ``args.rest`` for arguments."""
    repository = Path(__file__).resolve().parents[1]
    if not (repository / "tests").is_dir():
        raise UserError(
            f"no tests beside {Path(__file__).parent}: they come with a clone of the repository"
        )
    if find_spec("pytest") is None:
        raise UserError("pytest is not installed: pip install -r requirements-dev.txt")
    # A process of its own, because the runtime type checker must be there before the package is.
    code = subprocess.run([sys.executable, "-m", "pytest", *args.rest], cwd=repository).returncode
    return {0: OK, 4: USAGE}.get(code, FAILED)
