"""The command line: quick help, one-line errors, exit codes that mean something."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crossguard_jax import arguments, cli, verbs
from crossguard_jax.core.errors import UserError

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """``run(handler, *argv)``: the command line with one more verb, ``probe``; code and output."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--steps", type=int, default=1)
        arguments.config_argument(parser, default="configs/guard.py:tiny")

    def run(handler: Callable[[argparse.Namespace], int | None], *argv: str):
        probe = verbs.Verb(
            help="try things",
            example="crossguard probe --steps 2",
            handler="probe:handler",
            add_arguments=add_arguments,
        )
        monkeypatch.setitem(cli.VERBS, "probe", probe)
        monkeypatch.setattr(cli, "_import", lambda name: handler)
        code = cli.main(argv)
        return code, *capsys.readouterr()

    return run


def nothing(args: argparse.Namespace) -> None:
    """Succeeds."""


def fails(error: BaseException) -> Callable[[argparse.Namespace], None]:
    def handler(args: argparse.Namespace) -> None:
        raise error

    return handler


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example_and_a_handler_that_exists(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "example:" in shown
    assert f" {verb}" in cli.VERBS[verb].example
    assert cli.VERBS[verb].example in shown
    assert callable(cli._import(cli.VERBS[verb].handler))


def test_help_imports_neither_jax_nor_numpy() -> None:
    code = (
        "import sys; from crossguard_jax.cli import VERBS, main\n"
        "assert all(main([verb, '--help']) == 0 for verb in VERBS)\n"
        "heavy = {'jax', 'numpy', 'flax', 'transformers', 'ml_collections'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cli.__file__).parents[1])


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_without_a_verb_the_help_lists_them(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in cli.VERBS)


def test_a_verb_that_succeeds_exits_with_0(run: Main) -> None:
    assert run(nothing, "probe") == (0, "", "")


def test_a_verb_may_choose_its_exit_code(run: Main) -> None:
    assert run(lambda args: 1, "probe") == (1, "", "")


def test_a_user_error_is_one_line_without_a_traceback(run: Main) -> None:
    code, out, err = run(fails(UserError("row 3:\n no such picture")), "probe")
    assert (code, out, err) == (1, "", "crossguard: row 3: no such picture\n")


def test_a_full_disk_or_a_forbidden_path_is_one_line_too(run: Main) -> None:
    code, _, err = run(fails(PermissionError(13, "Permission denied", "/a/b")), "probe")
    assert code == 1
    assert "/a/b" in err and err.count("\n") == 1


def test_debug_shows_the_traceback(run: Main) -> None:
    with pytest.raises(UserError):
        run(fails(UserError("no")), "probe", "--debug")


def test_a_bug_keeps_its_traceback(run: Main) -> None:
    with pytest.raises(ZeroDivisionError):
        run(fails(ZeroDivisionError()), "probe")


def test_an_interrupt_exits_with_130(run: Main) -> None:
    code, _, err = run(fails(KeyboardInterrupt()), "probe")
    assert (code, err) == (130, "crossguard: interrupted\n")


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["prbe"], "'probe'"),
        (["probe", "--stepps", "2"], "--stepps"),
        (["probe", "--steps", "two"], "--steps"),
        (["probe", "stray"], "stray"),
        (["probe", "--config"], "--config"),
        (["--bogus"], "--bogus"),
    ],
)
def test_a_usage_error_is_one_line_and_exits_with_2(run: Main, argv: list[str], names: str) -> None:
    code, out, err = run(nothing, *argv)
    assert (code, out) == (2, "")
    assert names in err and "--help" in err and err.count("\n") == 1


def test_a_handler_may_report_arguments_that_do_not_go_together(run: Main) -> None:
    code, _, err = run(lambda args: args.usage_error("give one of the two"), "probe")
    assert (code, err) == (
        2,
        "crossguard probe: give one of the two (see crossguard probe --help)\n",
    )


def test_overrides_reach_the_configuration(run: Main) -> None:
    seen = []
    overrides = ("--config.train.steps=7", "--config.data.prompt=a prompt of words")
    assert run(lambda args: seen.append(args.config), "probe", *overrides, "--steps=3")[0] == 0
    assert (seen[0].train.steps, seen[0].data.prompt) == (7, "a prompt of words")


def test_a_mistyped_override_is_told_the_nearest_field(run: Main) -> None:
    code, _, err = run(nothing, "probe", "--config.optim.learning_rte=1")
    assert code == 1
    assert "did you mean 'optim.learning_rate'" in err and err.count("\n") == 1


def test_an_override_without_a_configuration_is_a_usage_error(
    run: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.VERBS, "plain", verbs.Verb("do", "crossguard plain", "probe:handler"))
    code, _, err = run(nothing, "plain", "--config.train.steps=7")
    assert code == 2
    assert "takes no configuration" in err


def test_processes_are_joined_before_the_handler_runs(
    run: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    monkeypatch.setattr(cli, "initialize_if_several", lambda: order.append("join"))
    run(lambda args: order.append("handler"), "probe")
    assert order == ["join", "handler"]


def test_a_reader_that_leaves_early_causes_no_complaint() -> None:
    code = (
        "import sys; from crossguard_jax import cli, verbs\n"
        "def handler(args):\n"
        "    for _ in range(100_000): print('a line of output')\n"
        "cli.VERBS['probe'] = verbs.Verb('write', 'crossguard probe', 'x:y')\n"
        "cli._import = lambda name: handler\n"
        "sys.exit(cli.main(['probe']))"
    )
    done = subprocess.run(
        f'"{sys.executable}" -c "$CODE" | head -n 1',
        shell=True,
        env=os.environ | {"CODE": code, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("a line of output\n", "")


@pytest.mark.parametrize(
    ("pytest_code", "code"), [(0, 0), (1, 1), (2, 1), (3, 1), (4, 2), (5, 1), (-9, 1)]
)
def test_the_test_verb_hands_its_arguments_to_pytest(
    monkeypatch: pytest.MonkeyPatch, pytest_code: int, code: int
) -> None:
    started: list[list[str]] = []

    def started_with(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, pytest_code)

    monkeypatch.setattr(cli.subprocess, "run", started_with)
    arguments = ["-m", "slow", "tests/train", "-k", "a and not b", "-x", "--lf"]
    assert cli.main(["test", *arguments]) == code
    assert started == [[sys.executable, "-m", "pytest", *arguments]]
