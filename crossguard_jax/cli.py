"""The command line: runs one verb of ``verbs.VERBS``, and turns errors into one line."""

import argparse
import contextlib
import importlib
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime import flags, preemption, watchdog
from crossguard_jax.runtime.exits import AGAIN
from crossguard_jax.runtime.joining import initialize_if_several
from crossguard_jax.systems import kinds
from crossguard_jax.verbs import VERBS, Verb

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
OVERRIDE = re.compile(r"--(no)?config\.")
SHIPPED, ROWS = re.compile(r"\btoy://[\w-]+"), "toy"
"""What names the small world's models, and the reader of its rows."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "crossguard_jax"
CACHE_DIR = "JAX_COMPILATION_CACHE_DIR"
ENVIRON = {
    # Compiled programs are kept: a request's takes longer to compile than all else together.
    CACHE_DIR: str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    "TOKENIZERS_PARALLELISM": "false",
    # XLA's, TensorStore's, gRPC's and transformers' chatter; errors still come through.
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "ABSL_MIN_LOG_LEVEL": "2",
    "GRPC_VERBOSITY": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""How libraries are set up in a process of our own; what the user has set stays."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: verb and arguments; None are the process's own, which is then set up for them.

    Returns:
        The exit code: 0, 1 (failed), 2 (usage), 75 (told to stop, and saved: start it again) or
        130 (interrupted).
    """
    ours = argv is None
    if ours:
        os.environ.update({k: v for k, v in ENVIRON.items() if k not in os.environ})
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    if ours and not debug:
        # Nobody can catch what a library's own thread or finalizer raises, after the one error that
        # is told.
        sys.unraisablehook = lambda _: None
        threading.excepthook = _in_thread
    try:
        code = _run(argv, ours)
        watchdog.rest()
        return code
    except preemption.Stopped as stop:
        preemption.heard()
        print(f"crossguard: {stop.reason}; start it again", file=sys.stderr)
        watchdog.rest()
        return AGAIN
    except SystemExit as stop:  # argparse, after --help or a usage error
        watchdog.rest()
        return stop.code if isinstance(stop.code, int) else OK
    except BrokenPipeError:
        # The reader (`| head`) has left; Python's flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        if debug:
            raise
        print("crossguard: interrupted", file=sys.stderr)
        watchdog.fail(INTERRUPTED, "interrupted")
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        line = _line_on(error)
        print(f"crossguard: {line}", file=sys.stderr)
        watchdog.fail(FAILED, line)
        return FAILED


def _in_thread(error: threading.ExceptHookArgs) -> None:
    """A library's thread on a full disk says nothing beside that error."""
    if error.exc_type is not None and not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


def _line_on(error: Exception) -> str:
    """An error as one line; a library's own one, if no other process is to blame for it."""
    if isinstance(error, UserError | OSError):
        return " ".join(str(error).split())
    reason = textwrap.shorten(str(error), 160, placeholder=" ...")
    out = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in reason
    if out or isinstance(error, MemoryError):
        where = "this machine" if isinstance(error, MemoryError) else "a device"
        return (
            f"the memory of {where} does not do ({reason or 'MemoryError'}); lower the batch size, "
            "raise optim.accumulate, or spread the model: --config.mesh.fsdp=-1"
        )
    watchdog.blame()
    return _unexpected(error)


def _unexpected(error: Exception) -> str:
    """One line on an error that nobody foresaw. Its traceback is kept, since what led to it may
    have taken hours."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="crossguard-", suffix=".txt", delete=False
    ) as file:
        file.writelines(traceback.format_exception(error))
    what = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
    return f"unexpected {what}; please report it with its traceback, {file.name}"


def _run(argv: list[str], ours: bool) -> int:
    if argv and argv[0].partition("=")[0] == "--on":
        from crossguard_jax.runtime.launchers.command import launch

        return launch(argv, VERBS)
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
    # They leave before argparse sees them, which takes one with a space in its value for a
    # positional argument.
    overrides = [word for word in argv if OVERRIDE.match(word)]
    args, rest = parser.parse_known_args([word for word in argv if not OVERRIDE.match(word)])
    if verb.passes_through:
        args.rest, overrides = [*rest, *overrides], []
    elif rest:
        args.usage_error(f"unknown argument {rest[0]!r}")
    one_of = getattr(args, "one_of", ())
    if one_of and all(getattr(args, name) is None for name in one_of):
        args.usage_error(f"one of {', '.join(f'--{name}' for name in one_of)} is needed")
    configured = getattr(args, "config", None) is not None
    if overrides and not configured:
        args.usage_error(f"takes no configuration, so no {overrides[0]}")
    if configured:
        args.spec, args.config = args.config, _load_config(args, overrides)
    addresses = flags.remote_folders(args)
    # Whose workers compute takes no device itself.
    computes = verb.uses_jax and getattr(args, "shards", None) is None
    several = computes and initialize_if_several()
    if ours and computes:
        _watch(several)
    if ours and verb.uses_models and not any(map(kinds.needs_torch, _models(args))):
        sys.meta_path.insert(0, _WithoutTorch())
    talks = not several or _only_the_first_talks()
    if talks and (words := [*_first_line(args, computes)]):
        print("; ".join(words), file=sys.stderr if verb.prints_data else sys.stdout, flush=True)
    with _staged(args, addresses):
        code = _import(verb.handler)(args)
    return OK if code is None else code


def _staged(
    args: argparse.Namespace, addresses: Mapping[str, str]
) -> contextlib.AbstractContextManager[None]:
    """Around work that is written to buckets, or whose programs are kept in one; most is not."""
    cache = os.environ.get(CACHE_DIR, "")
    if not addresses and "://" not in cache:
        return contextlib.nullcontext()
    from crossguard_jax.runtime import remote

    if "://" in cache:
        remote.opened(cache, f"{CACHE_DIR}=")  # JAX says it of each program, on three lines
    return remote.staged(args, addresses) if addresses else contextlib.nullcontext()


def _only_the_first_talks() -> bool:
    """The other processes' results and progress are the first one's; their errors are their own.
    Says whether this is the first."""
    from crossguard_jax.io.progress import Progress
    from crossguard_jax.runtime import processes

    if not processes.is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
        Progress.shown = False
    return processes.is_first()


def _watch(several: bool) -> None:
    """Hears signals to stop, and looks after the other processes, where there are any."""
    if not several:
        return preemption.listen()
    from crossguard_jax.runtime import processes
    from crossguard_jax.runtime.board import open_board

    index, count, board = processes.index(), processes.count(), open_board()
    preemption.listen(board, index, count)
    if board is not None:
        watchdog.watch(board, index, count)


def _load_config(args: argparse.Namespace, overrides: Sequence[str]) -> Any:
    """The configuration that was asked for, if the verb can read it."""
    from crossguard_jax.core.config import load_config

    config = load_config(args.config, [*flags.overrides(args), *overrides])
    if missing := [name for name in args.config_fields if name not in config]:
        raise UserError(
            f"{args.config} has no {missing[0]!r}, so it is no configuration of {args.verb}: "
            f"see {args.config_file}"
        )
    return config


def _first_line(args: argparse.Namespace, computes: bool) -> Iterator[str]:
    """Which devices and processes compute, which configuration was read, and what of the small
    world the verb works with."""
    if computes:
        from crossguard_jax.runtime.mesh import described

        yield described()
    texts = _models(args)
    if hasattr(args, "spec"):
        from crossguard_jax.core.config import find_config

        path, _, variant = args.spec.partition(":")
        yield f"configuration {find_config(path)}:{variant}"
        texts += _texts({name: args.config[name] for name in args.config_fields})
    if small := sorted({name for text in texts for name in SHIPPED.findall(text)}):
        yield f"the small world's models: {', '.join(small)}"
    if ROWS in texts:
        yield "the small world's rows"


def _models(args: argparse.Namespace) -> list[str]:
    """What ``--model``, ``--target`` and the systems of a configuration name."""
    models: list[str] = []
    for flag in ("model", "target"):
        given = getattr(args, flag, None) or []
        models += [given] if isinstance(given, str) else given
    if hasattr(args, "spec") and "systems" in args.config_fields:
        models += [each.path for each in args.config.systems.values() if each.on]
    return models


def _texts(value: Any) -> Iterator[str]:
    """Every string in a configuration."""
    if isinstance(value, str):
        yield value
    elif hasattr(value, "items"):
        for _, inner in value.items():
            yield from _texts(inner)


class _WithoutTorch(MetaPathFinder):
    """Keeps transformers, when something imports it, from importing torch where it is installed.

    That takes seconds, for models that are not run here. transformers asks once whether there is
    torch, and remembers the answer.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Of transformers alone, as others find it; its module is run where torch is not there."""
        if name != "transformers":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None or find_spec("torch") is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            sys.modules["torch"] = None  # type: ignore[assignment]  # find_spec's "not there"
            try:
                run(module)
                importlib.import_module("transformers.utils").is_torch_available()
            finally:
                del sys.modules["torch"]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line that says where the help is; one about the
    model or the configuration is followed by those that there are."""

    def error(self, message: str) -> NoReturn:
        lines = [f"{self.prog}: {message} (see {self.prog} --help)"]
        if "--model" in message and (models := self.get_default("shipped_models")):
            width = max(map(len, models))
            lines += [f"  {name:{width}}  {what}" for name, what in models.items()]
        if "--config" in message and (file := self.get_default("config_file")):
            lines += _variants(file)
        self.exit(USAGE, "".join(f"{line}\n" for line in lines))


def _variants(file: str) -> Iterator[str]:
    """Configurations, one a line: a file's, and those of files of the user's own."""
    from crossguard_jax.core.config import INSTALLED, config_files, describe_variants

    ours = {f"configs/{path.name}" for path in INSTALLED.glob("*.py")}
    for each in [file, *(f for f in config_files() if f not in ours)]:
        try:
            described = describe_variants(each)
        except UserError as error:
            yield f"  {error}"
            continue
        width = max(map(len, described), default=0)
        for name, what in described.items():
            yield f"  {each}:{name:{width}}  {what}".rstrip()


def _build_parser() -> _Parser:
    parser = _Parser(
        prog="crossguard",
        description="A guard for multimodal models, trained and immunized in JAX.",
        epilog="Every verb's own --help shows an example. With --on slurm|k8s|tpu|skypilot before "
        "it, it runs elsewhere: --on LAUNCHER --help.",
    )
    verbs = parser.add_subparsers(metavar="VERB", title="verbs", prog="crossguard")
    subparsers = [parser]
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            epilog=f"example:\n  {_command(verb)}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(sub)
        sub.set_defaults(verb=name, usage_error=sub.error)
        subparsers.append(sub)
    for each in subparsers:
        each.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _command(verb: Verb) -> str:
    """The example as it is typed here; ``launch/run.sh`` says how it was called."""
    return f"{os.environ.get('CROSSGUARD_COMMAND', 'crossguard')} {verb.example}"


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
