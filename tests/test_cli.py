"""The command line: quick help, one-line errors, exit codes that mean something."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crossguard_jax import arguments, cli, verbs
from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.impforge import commands
from crossguard_jax.runtime.exits import AGAIN, STARTS_AGAIN
from crossguard_jax.runtime.preemption import Stopped
from crossguard_jax.systems import kinds

Main = Callable[..., tuple[int, str, str]]
REPOSITORY = Path(cli.__file__).resolve().parents[1]
TINY = "configs/guard.py:tiny"
CONFIGURED = ("train", "match", "forge", "immunize", "attack")
# What a verdict needs none of: seconds, taken together.
HEAVY = (
    *("torch", "scipy", "sklearn", "matplotlib", "orbax", "grain", "tensorflow_datasets"),
    *("tensorboardX", "pandas", "accelerate", "peft", "openai", "chex"),
    "transformers.modeling_utils",
)
HERE = "1 cpu device, 1 process"
FIRST_LINE = (
    f"{HERE}; configuration {TINY}; the small world's models: toy://llava; the small world's rows\n"
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """``run(handler, *argv)``: the command line with one more verb, ``probe``; code and output.

    It runs in the repository's folder, with the small world's configuration unless ``config`` is
    another.
    """
    monkeypatch.chdir(REPOSITORY)

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--steps", type=int, default=1)
        arguments.config_argument(parser, "configs/guard.py", ("model", "data"))

    def run(handler: Callable[[argparse.Namespace], int | None], *argv: str, config: str = TINY):
        probe = verbs.Verb(
            help="try things",
            example="probe --steps 2",
            handler="probe:handler",
            add_arguments=add_arguments,
        )
        monkeypatch.setitem(cli.VERBS, "probe", probe)
        monkeypatch.setattr(cli, "_import", lambda name: handler)
        code = cli.main([*argv, "--config", config] if argv[0] == "probe" else argv)
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
    assert f"crossguard {cli.VERBS[verb].example}" in shown
    assert cli.VERBS[verb].example.split()[0] == verb
    assert callable(cli._import(cli.VERBS[verb].handler))


@pytest.mark.parametrize("size", ["0", "-1", "two"])
@pytest.mark.parametrize("verb", ["score", "evaluate", "validity", "calibrate", "tasks"])
def test_a_batch_has_one_row_at_least(
    verb: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb, "--batch-size", size]) == cli.USAGE
    err = capsys.readouterr().err
    assert (
        f"--batch-size: {size!r}: needs a whole number, at least 1" in err and err.count("\n") == 1
    )


def test_help_imports_neither_jax_nor_numpy() -> None:
    code = (
        "import sys; from crossguard_jax.cli import VERBS, main\n"
        "assert all(main([verb, '--help']) == 0 for verb in VERBS)\n"
        "heavy = {'jax', 'numpy', 'flax', 'transformers', 'ml_collections'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    started(code)


def started(code: str, **environ: str) -> list[str]:
    """What Python code prints in a process of its own, where the repository is on the path."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_verdict_imports_nothing_that_it_does_not_need() -> None:
    lines = started(
        "import json, sys; from crossguard_jax import cli\n"
        "sys.argv[1:] = ['score', '--model', 'toy://llava', '--text', 'is this safe?']\n"
        "assert cli.main() == 0\n"
        f"print(json.dumps(sorted({{*{HEAVY!r}}} & {{*sys.modules}})))"
    )
    verdict, heavy = map(json.loads, lines)
    assert verdict["label"] in ("safe", "unsafe")
    assert heavy == []


def test_libraries_are_quiet_and_keep_what_they_compile_unless_the_user_says_otherwise() -> None:
    names = ("JAX_COMPILATION_CACHE_DIR", "GRPC_VERBOSITY", "ABSL_MIN_LOG_LEVEL")
    lines = started(
        "import json, os, sys; from crossguard_jax import cli; sys.argv[1:] = []\n"
        "os.environ.pop('JAX_COMPILATION_CACHE_DIR'); cli.main()\n"
        f"print(json.dumps([os.environ[name] for name in {names!r}]))",
        XDG_CACHE_HOME="/cache",
        GRPC_VERBOSITY="DEBUG",
    )
    assert json.loads(lines[-1]) == ["/cache/crossguard_jax", "DEBUG", "2"]


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_without_a_verb_the_help_lists_them(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in cli.VERBS)


def test_a_verb_that_succeeds_exits_with_0(run: Main) -> None:
    assert run(nothing, "probe") == (0, FIRST_LINE, "")


def test_a_verb_may_choose_its_exit_code(run: Main) -> None:
    assert run(lambda args: 1, "probe") == (1, FIRST_LINE, "")


def test_a_user_error_is_one_line_without_a_traceback(run: Main) -> None:
    code, out, err = run(fails(UserError("row 3:\n no such picture")), "probe")
    assert (code, out, err) == (1, FIRST_LINE, "crossguard: row 3: no such picture\n")


def test_a_full_disk_or_a_forbidden_path_is_one_line_too(run: Main) -> None:
    code, _, err = run(fails(PermissionError(13, "Permission denied", "/a/b")), "probe")
    assert code == 1
    assert "/a/b" in err and err.count("\n") == 1


def test_debug_shows_the_traceback(run: Main) -> None:
    with pytest.raises(UserError):
        run(fails(UserError("no")), "probe", "--debug")


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("by\nzero"), RuntimeError("x" * 999), KeyError("a")]
)
def test_what_nobody_foresaw_is_one_line_that_names_its_traceback(
    run: Main, error: Exception
) -> None:
    code, _, err = run(fails(error), "probe")
    assert code == 1 and err.count("\n") == 1 and len(err) < 500
    assert type(error).__name__ in err
    file = Path(err.split()[-1])
    assert "raise error" in file.read_text()
    file.unlink()
    with pytest.raises(type(error)):
        run(fails(error), "probe", "--debug")


def test_an_interrupt_exits_with_130(run: Main) -> None:
    code, _, err = run(fails(KeyboardInterrupt()), "probe")
    assert (code, err) == (130, "crossguard: interrupted\n")


def test_told_to_stop_it_says_start_me_again_by_its_code(run: Main) -> None:
    code, _, err = run(fails(Stopped("told to stop by SIGTERM: saved after step 7")), "probe")
    assert (code, err) == (
        AGAIN,
        "crossguard: told to stop by SIGTERM: saved after step 7; start it again\n",
    )
    assert AGAIN in STARTS_AGAIN


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4503599627370496 bytes."),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_one_line_with_the_mend_and_no_code_to_start_again(
    run: Main, error: Exception
) -> None:
    code, _, err = run(fails(error), "probe")
    assert code == 1 and code not in STARTS_AGAIN
    assert err.count("\n") == 1 and "lower the batch size" in err and "report it" not in err


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["prbe"], "'probe'"),
        (["probe", "--stepps", "2"], "--stepps"),
        (["probe", "--steps", "two"], "--steps"),
        (["probe", "stray"], "stray"),
        (["--bogus"], "--bogus"),
    ],
)
def test_a_usage_error_is_one_line_and_exits_with_2(run: Main, argv: list[str], names: str) -> None:
    code, out, err = run(nothing, *argv)
    assert (code, out) == (2, "")
    assert names in err and "--help" in err and err.count("\n") == 1


@pytest.mark.parametrize("verb", CONFIGURED)
@pytest.mark.parametrize("argv", [[], ["--config"], ["--config.train.steps=1"]])
def test_a_verb_without_a_configuration_lists_those_that_there_are(
    verb: str, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb, *argv]) == 2
    out, err = capsys.readouterr()
    first, *listed = err.splitlines()
    assert out == "" and "--config" in first
    described = dict(line.strip().split(maxsplit=1) for line in listed)
    described = {name: what for name, what in described.items() if "toy://" not in name}
    assert all(name.startswith("configs/") for name in described)
    tiny = [what for name, what in described.items() if ":tiny" in name]
    assert tiny and all("small world" in what for what in tiny)


@pytest.mark.parametrize("verb", ["attack", "tasks", "evaluate", "score", "export"])
@pytest.mark.parametrize("argv", [[], ["--model"]])
def test_a_verb_without_a_model_lists_those_that_come_with_the_package(
    verb: str, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb, *argv]) == 2
    out, err = capsys.readouterr()
    first, *listed = err.splitlines()
    assert out == "" and "--model" in first
    models = [line.split(maxsplit=1) for line in listed if "toy://" in line]
    wanted = {"toy://llava", "toy://clip"} if verb == "tasks" else {"toy://llava"}
    assert {name for name, _ in models} == wanted
    assert all("small world" in what and resolve_folder(name).is_dir() for name, what in models)


def test_the_users_own_configurations_are_listed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").mkdir()
    for name, text in {"mine": "VARIANTS = ['fast']\ndef get_config(v): ...", "bad": "("}.items():
        (tmp_path / "configs" / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train"]) == 2
    err = capsys.readouterr().err
    assert "configs/guard.py:llava_7b" in err and "configs/mine.py:fast" in err
    assert "configs/bad.py:1: not valid Python" in err
    assert "configs/cmai.py" not in err


@pytest.mark.parametrize("verb", [*CONFIGURED, "tasks", "evaluate", "score", "export"])
def test_no_verb_has_a_model_or_a_configuration_that_nobody_asked_for(verb: str) -> None:
    parser = argparse.ArgumentParser()
    cli.VERBS[verb].add_arguments(parser)
    asked = [action for action in parser._actions if action.dest in ("config", "model")]
    one_of = parser.get_default("one_of") or ()
    assert asked and all(action.default is None for action in asked)
    assert all(action.required or action.dest in one_of for action in asked)


@pytest.mark.parametrize(
    ("config", "overrides", "line"),
    [
        (TINY, [], FIRST_LINE),
        (
            TINY,
            ["--config.model.path=a/llava"],
            f"{HERE}; configuration {TINY}; the small world's rows\n",
        ),
        (
            "configs/guard.py:nlvr",
            [],
            f"{HERE}; configuration configs/guard.py:nlvr; the small world's models: toy://llava\n",
        ),
        ("configs/guard.py:llava_7b", [], f"{HERE}; configuration configs/guard.py:llava_7b\n"),
    ],
)
def test_the_first_line_says_what_was_read_and_what_is_of_the_small_world(
    run: Main, config: str, overrides: list[str], line: str
) -> None:
    assert run(nothing, "probe", *overrides, config=config) == (0, line, "")


def test_a_model_of_the_small_world_on_the_command_line_is_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_import", lambda name: nothing)
    assert cli.main(["tasks", "--model", "a=toy://clip", "--model", "b", "--data", "x"]) == 0
    assert capsys.readouterr().out == f"{HERE}; the small world's models: toy://clip\n"


def test_a_target_that_torch_runs_keeps_torch() -> None:
    line = ["validity", "--triplets", "t", "--forged", "f", "--target", "a=llavaguard:there"]
    args = cli._build_parser().parse_args([*line, "--target", "b"])
    assert [kinds.needs_torch(name) for name in cli._models(args)] == [True, False]


@pytest.mark.parametrize("request_", [["--text", "t"], ["--input", "i", "--output", "o"]])
def test_score_tells_it_beside_the_verdicts_and_not_among_them(
    request_: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_import", lambda name: lambda args: print("{}"))
    assert cli.main(["score", "--model", "toy://llava", *request_]) == 0
    assert capsys.readouterr() == ("{}\n", f"{HERE}; the small world's models: toy://llava\n")


@pytest.mark.parametrize(("kind", "told"), [("none", True), ("guard", False)])
def test_match_says_so_where_no_picture_is_judged(
    kind: str, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = argparse.Namespace(rejected=0, lines=lambda: ["matched"])
    monkeypatch.setattr(commands, "match_files", lambda *args, load_system: summary)
    argv = ["--config", "configs/impforge.py:tiny", f"--config.match.judge.kind={kind}"]
    assert cli.main(["match", *argv, "--queries", "q.jsonl", "--pictures", "p"]) == 0
    assert ("match.judge.kind is none" in capsys.readouterr().out) == told


def test_a_configuration_of_another_verb_is_refused_by_its_first_missing_field(run: Main) -> None:
    code, _, err = run(nothing, "probe", config="configs/impforge.py:tiny")
    assert code == 1 and err.count("\n") == 1
    assert "configs/impforge.py:tiny has no 'model'" in err and "configs/guard.py" in err


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
    monkeypatch.setitem(cli.VERBS, "plain", verbs.Verb("do", "plain", "probe:handler"))
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
        "cli.VERBS['probe'] = verbs.Verb('write', 'probe', 'x:y', uses_jax=False)\n"
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
