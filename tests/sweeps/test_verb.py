"""The verb as the command line knows it: the page's commands, and what it refuses at once."""

import re
import shlex
from pathlib import Path

import pytest

from crossguard_jax import cli, sweeps
from crossguard_jax.sweeps.arguments import SEEDS

PAGE = Path(sweeps.__file__).parent / "README.md"
COMMANDS = [
    shlex.split(block.replace("\\\n", " "))[1:]
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
]
CONFIGS = {
    "train": "configs/guard.py:tiny",
    "immunize": "configs/cmai.py:tiny",
    "forge": "configs/impforge.py:tiny",
}
GUARD = ("sweep", "train", "--config", "configs/guard.py:tiny", "--out")


@pytest.mark.parametrize(("words", "runs"), list(zip(COMMANDS, (15, 12, 27), strict=True)))
def test_every_command_of_the_page_lists_its_runs(words, runs, capsys) -> None:
    assert cli.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith(f"\n{runs} runs\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--then", "evaluat --model {run}"), "no verb of that name"),
        (("--then", ""), "--then: names no verb"),
        (("--then", " "), "--then: names no verb"),
        (("--then", "evaluate --model '{run}"), "--then evaluate --model '{run}: No closing"),
        (("--then", "evaluate \\"), "--then evaluate \\: No escaped"),
        (("--then", "score --model {run}"), "leaves no folder"),
        (("--then", "evaluate --modle {run}"), "--modle"),
        (("--steps", "3"), "--steps"),
        (("--config.train.step=3",), "did you mean 'train.steps'"),
        (("--variants", "no_benin"), "no_benign"),
        (("--on", "mars"), "--on mars"),
        (("--seeds", "0", "0"), "--seeds"),
    ],
)
def test_what_a_verb_would_not_take_is_refused_before_any_run(
    words, message, tmp_path, capsys
) -> None:
    assert cli.main([*GUARD, str(tmp_path / "out"), *words]) in (1, 2)
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("verb", "fields"), SEEDS.items())
@pytest.mark.parametrize("words", [("--set", "{}=1,2"), ("--config.{}=7",)])
def test_no_row_has_seeds_of_its_own(verb, fields, words, capsys) -> None:
    for field in fields:
        given = [word.format(field) for word in words]
        config = CONFIGS[verb]
        assert cli.main(["sweep", verb, "--config", config, "--dry-run", *given]) == 1
        assert f"{field}: the seeds of a sweep's runs" in capsys.readouterr().err


@pytest.mark.parametrize("place", [2, 4, 7])
def test_an_override_with_a_space_may_stand_anywhere(place, capsys) -> None:
    words = ["sweep", "train", "--config", CONFIGS["train"], "--seeds", "0", "1", "--dry-run"]
    words.insert(place, "--config.model.path=my guard")
    assert cli.main(words) == 0
    assert "seed 0: to do, seed 1: to do" in capsys.readouterr().out
