"""``--on LAUNCHER [options] VERB ...``: writes a run's files and runs its commands."""

import argparse
import shutil
import subprocess
import textwrap
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime.exits import STARTS_AGAIN
from crossguard_jax.runtime.launchers import kubernetes, skypilot, slurm, tpu
from crossguard_jax.runtime.launchers.scripts import Submission, quote, refuse_line_breaks

LAUNCHERS: dict[str, ModuleType] = {
    "slurm": slurm,
    "k8s": kubernetes,
    "tpu": tpu,
    "skypilot": skypilot,
}
PROGRAM = "launch/run.sh"


class LauncherParser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: {message} (see {self.prog} --help)\n")


def launch(argv: Sequence[str], verbs: Collection[str]) -> int:
    """Launches a run elsewhere, or says how it would.

    Args:
      argv: ``--on``, the launcher, its options, the verb and the verb's arguments.
      verbs: the verbs that there are.

    Returns:
      The exit code: 0, or that of the command that failed.

    Raises:
      UserError: a value that cannot be launched, or a tool that is not on this machine.
      SystemExit: after ``--help`` or a usage error.
    """
    args = parse(argv, verbs)
    if args.dry_run:
        _print(args.launcher.submission(args))
        return 0
    return _submit(args, args.launcher.submission(args))


def parse(argv: Sequence[str], verbs: Collection[str]) -> argparse.Namespace:
    """The launcher's arguments, with what every launcher needs besides: ``launcher``,
    ``repository``, ``folder`` (for the run's files), ``usage_error``."""
    refuse_line_breaks(argv)
    # The launcher first, since it declares all else.
    option, equals, name = argv[0].partition("=")
    name, rest = (name, argv[1:]) if equals else ("".join(argv[1:2]), argv[2:])
    if name not in LAUNCHERS:
        choices = ", ".join(LAUNCHERS)
        LauncherParser(prog=f"{PROGRAM} --on {choices.split(',')[0]}").error(
            f"{option} {name!r} is no launcher: choose from {choices}"
        )
    launcher = LAUNCHERS[name]
    parser = LauncherParser(
        prog=f"{PROGRAM} --on {name}",
        usage=f"{PROGRAM} --on {name} [options] VERB ...",
        description=f"Runs a verb elsewhere: {launcher.HELP}.",
        epilog=_epilog(name, launcher),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    launcher.add_arguments(parser)
    parser.add_argument("verb", metavar="VERB", help="and its arguments, as without --on")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(rest)
    # Behind a verb that has none it would start what was to be looked at.
    if "--dry-run" in args.rest and args.verb != "sweep":
        parser.error(f"--dry-run is of --on {name}: give it before the verb {args.verb}")
    if args.verb not in verbs:
        nearest = get_close_matches(args.verb, verbs, n=1, cutoff=0.0)[0]
        parser.error(f"no verb {args.verb!r}, did you mean {nearest!r}?")
    args.on, args.launcher, args.usage_error = name, launcher, parser.error
    args.name = args.name or f"crossguard-{args.verb}"
    args.repository = Path(__file__).resolve().parents[3]
    args.folder = Path.cwd() / "runs/launch" / args.name
    # Into scripts they go, too.
    refuse_line_breaks([str(args.repository), str(args.folder)])
    if not (args.repository / PROGRAM).is_file():
        raise UserError(f"--on starts {PROGRAM} elsewhere; {args.repository} has none: use a clone")
    return args


def _epilog(name: str, launcher: ModuleType) -> str:
    codes = ", ".join(map(str, STARTS_AGAIN))
    again = textwrap.fill(
        f"A run that exits with {codes} is started again and goes on from what it saved; any other "
        "failure ends the job.",
        width=80,
    )
    return f"{again}\n\nexample:\n  {PROGRAM} --on {name} --dry-run {launcher.EXAMPLE}"


def _print(submission: Submission) -> None:
    for note in submission.notes:
        print(f"# {note}")
    for path, text in submission.files.items():
        print(f"# ---- file: {path}")
        print(text, end="")
    print("# ---- commands")
    for command in submission.commands:
        print(" ".join(map(quote, command)))


def _submit(args: argparse.Namespace, submission: Submission) -> int:
    for tool in dict.fromkeys(command[0] for command in submission.commands):
        if shutil.which(tool) is None:
            raise UserError(
                f"--on {args.on} needs {tool}, which is not on this machine: install it, go where "
                "it is, or add --dry-run to see the files and commands"
            )
    args.folder.mkdir(parents=True, exist_ok=True)
    for path, text in submission.files.items():
        path.write_text(text)
        print(f"wrote {path}")
    for note in submission.notes:
        print(note)
    for command in submission.commands:
        print(" ".join(map(quote, command)), flush=True)
        code = subprocess.run(command, check=False).returncode
        if code:
            return code if code > 0 else 128 - code
    return 0
