"""Every registered attack through the verb's own route: run, counted, saved, read back."""

import argparse
import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from crossguard_jax import cli
from crossguard_jax.attacks import registry
from crossguard_jax.attacks.curves import CLEAN, SWAP, Entry, Plan, pictures_at, worst_case
from crossguard_jax.attacks.registry import REGISTRY, ROWS, WHOLE, Cost
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import LeftOut, write_jsonl
from crossguard_jax.evals.evaluate import read_benchmarks
from crossguard_jax.evals.robustness import attack, budget, saved, suffixes
from crossguard_jax.evals.robustness.breakdown import groups
from crossguard_jax.evals.robustness.figures import Robustness
from crossguard_jax.evals.robustness.flags import Gradients, flags
from crossguard_jax.evals.robustness.prompts import _perturb
from crossguard_jax.evals.robustness.rewriting import Rewriting
from crossguard_jax.evals.robustness.runs import CellFolder
from crossguard_jax.evals.robustness.systems import _fingerprint, make_suite
from crossguard_jax.evals.robustness.texts import TextSuite, _embeddings
from crossguard_jax.toy.world.sources import records
from tests.attacks.test_registry import attacks_there_are
from tests.cmai.small_systems import base, system_of
from tests.evals.robustness.test_figures import cell, curve

ROWS_OF_DATA = [*records("implicit", "test", 8), *records("typographic", "test", 2)]
EPSILON = 8 / 255


@pytest.fixture(scope="module")
def plain() -> Immunized:
    return Immunized.of(base())


def config_of(*names: str, **changes: Any) -> ConfigDict:
    """The shipped suite with some attacks, one step of each, at one radius."""
    config = load_config("configs/cmai.py:tiny")
    suite, _ = attack.suite_config(config.attack, True, names)
    with config.unlocked():
        suite.attacks = {name: {**spec, "steps": 1} for name, spec in suite.attacks.items()}
        suite.update({"epsilons": (0.0, EPSILON), "batch_size": 4, "draws": 1} | changes)
        suite.convergence.rows = 0
        config.attack = suite
    return config


# Names


def test_names_on_the_command_line_replace_the_configurations() -> None:
    own = load_config("configs/cmai.py:tiny").attack
    suite, without = attack.suite_config(own, False, ["apgd", "gcg:tokens=5"])
    assert set(suite.attacks) == {"apgd", "gcg"} and suite.alone and without == []
    assert suite.attacks.apgd.steps == own.attacks.apgd.steps, "as the configuration has it"
    assert suite.attacks.gcg.to_dict() == {"tokens": 5}
    whole, without = attack.suite_config(own, False, ["all"])
    assert without == ["transfer"] and set(whole.attacks) == set(REGISTRY) - {"transfer"}
    assert set(own.attacks) == {"apgd", "selective", "policy", "square", "transfer"}
    with pytest.raises(UserError, match="did you mean 'apgd'"):
        attack.suite_config(own, False, ["apdg"])
    with pytest.raises(UserError, match="none is left without a --surrogate"):
        attack.suite_config(own, False, ["transfer"])


def test_one_attack_is_run_one_way() -> None:
    own = load_config("configs/cmai.py:tiny").attack
    with pytest.raises(UserError, match="--attack gcg: given 2 times"):
        attack.suite_config(own, False, ["gcg:tokens=5", "gcg:tokens=20"])
    whole, _ = attack.suite_config(own, False, ["gcg:tokens=5", "all"])
    assert whole.attacks.gcg.tokens == 5 and len(whole.attacks) == len(REGISTRY) - 1


def test_cells_of_pictures_are_of_their_own_attacks_alone() -> None:
    system = Mock(Immunized, policy="", regime="", task=SimpleNamespace(labels=("a", "b")))
    names = [("apgd",), ("apgd", "gcg"), ("apgd", "edits"), ("apgd:steps=3",), ("apgd", "pgd")]
    own = load_config("configs/cmai.py:tiny").attack
    suites = [attack.suite_config(own, False, some)[0] for some in names]
    first, *others = [_fingerprint(suite, system, {}) for suite in suites]
    assert [other == first for other in others] == [True, True, False, False]


# The budget, by arithmetic


def test_the_budget_is_every_attacks_passes_at_every_radius() -> None:
    config = config_of("pgd", "edits", epsilons=(0.0, EPSILON, 0.1)).attack
    pgd, edits = (REGISTRY[name].changed("", steps=1) for name in ("pgd", "edits"))
    cost = budget.passes(config, [pgd, edits], 10)
    each = pgd.cost.forward + 1, edits.cost.forward + 1
    assert cost == Cost(2 * 10 + 10 * 2 * each[0] + 10 * each[1], 10 * 2 * pgd.cost.gradient)
    config.convergence.rows = 4
    more = budget.passes(config, [pgd, edits], 10)
    assert more.forward - cost.forward == 5 * 4 * each[0]


def test_the_budget_has_every_cut_and_the_clean_rows_that_choose_them() -> None:
    config = config_of("pgd").attack
    pgd = REGISTRY["pgd"].changed("", steps=1)
    edits, shared = (REGISTRY[name].changed("", steps=1) for name in ("edits", "universal_picture"))
    one, three = (budget.passes(config, [pgd, edits, shared], 10, cuts, 7) for cuts in (1, 3))
    each = 2 + sum(attack.cost.forward + 1 for attack in (pgd, edits, shared))
    assert three.forward - one.forward == 2 * 10 * each
    one = budget.passes(config, [pgd], 10, 1, 7)
    assert one.forward - budget.passes(config, [pgd], 10).forward == 7
    line = budget.line(config, [pgd], cut_at(0.9), ROWS_OF_DATA, 2, 0, 50)
    assert ", 4 cuts by 50 clean rows, 2 systems: " in line, "1%, 5%, even odds and its own"


def cut_at(threshold: float) -> Immunized:
    """A guard of no numbers with a threshold of its own."""
    words = SimpleNamespace(negative="safe", positive="unsafe")
    settings = SimpleNamespace(prompt=words, threshold=threshold, max_length=64)
    encoder = SimpleNamespace(windows=lambda texts, n: [ValueError()], settings=settings)
    task = SimpleNamespace(labels=("safe", "unsafe"), guard=SimpleNamespace(encoder=encoder))
    return Mock(Immunized, task=task, settings=settings, params={})


@pytest.mark.parametrize("route", ["half", "texts alone", "none", "no guard", "file"])
def test_cuts_are_chosen_by_what_is_given_or_by_half_of_the_data(
    route: str, tmp_path: Path
) -> None:
    config, first = config_of("edits" if route == "texts alone" else "pgd").attack, cut_at(0.5)
    if route == "none":
        config.fpr = ()
    if route == "no guard":
        first.task.labels = ("red", "blue")
    given = None
    if route == "file":
        write_jsonl(records("implicit", "val", 4), tmp_path, "val")
        given = [str(tmp_path / "val.jsonl")]
    args = argparse.Namespace(validation=given)
    with LeftOut(tmp_path / "rejected.jsonl") as left_out:
        chosen, rest = attack.validating(args, config, first, ROWS_OF_DATA, left_out)
        if route in ("half", "texts alone"):
            assert len(chosen.records) == len(rest) == 5 and "5 of the 10 rows" in chosen.how
            assert not {r.id for r in rest} & {r.id for r in chosen.records}
            return
        assert rest == ROWS_OF_DATA and len(chosen.records) == (4 if route == "file" else 0)
        args.validation = ["some.jsonl"]
        if route != "file":
            with pytest.raises(UserError, match="--validation: nothing is chosen by it"):
                attack.validating(args, config, first, ROWS_OF_DATA, left_out)


def test_the_budget_line_says_rows_attacks_and_what_is_there(plain: Immunized) -> None:
    config = config_of("pgd").attack
    line = budget.line(config, [REGISTRY["pgd"]], plain, ROWS_OF_DATA, 2, 3)
    assert line.startswith("budget: 10 rows, 1 attacks, 1 radii, 2 systems: at most ")
    assert "3 results of an earlier run" in line and "gradient passes" in line


def test_a_plan_is_no_result_and_what_is_not_counted_is_said(
    plain: Immunized, tmp_path: Path
) -> None:
    for name in ("curve/plan.json", "curve/clean@0.0.npz", "texts/edits-00000-a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert budget.left_there(tmp_path) == 2
    line = budget.line(config_of("pgd").attack, [REGISTRY["pgd"]], plain, ROWS_OF_DATA, 1, 0)
    assert line.endswith("beside the probe, --certify and what a policy's branches run")


# By source and category


def test_implicit_rows_are_apart_and_labels_within_them() -> None:
    whose, kinds = groups(ROWS_OF_DATA)
    assert whose["implicit"].sum() == 8 and whose["typographic"].sum() == 2
    assert (whose["implicit, safe"] | whose["implicit, unsafe"]).sum() == 8
    assert sum(own.sum() for own in kinds.values()) == len(ROWS_OF_DATA)
    assert all(kind.split(": ")[0] in whose for kind in kinds)


# AutoAttack's flags


def test_flags_are_raised_where_autoattack_would_and_nowhere_else() -> None:
    quiet = Robustness({0: curve()})
    looked = Gradients(10, 0)
    assert flags(quiet, 10, looked) == []
    lines = flags(quiet, 2, Gradients(10, 3, "the detector's gradient is 0"))
    assert ["Zero" in line or "detector" in line or "DLR" in line for line in lines] == [True] * 3
    noisy = replace(quiet.any, random=True)
    assert any("rand" in line for line in flags(Robustness({0: noisy}), 10, looked))


@pytest.mark.parametrize(
    "order, alone, broken, raised",
    [
        (("pgd", "square"), True, {"pgd": (0, 1), "square": (1, 2)}, True),
        (("square", "pgd"), True, {"pgd": (0, 1), "square": (0, 1)}, False),
        (("pgd", "square", "noise"), True, {"noise": (3,)}, False),
        (("square", "pgd"), False, {"square": (0, 1)}, False),
        (("pgd", "square"), False, {"square": (0, 1)}, True),
    ],
    ids=["square alone", "gradients too", "noise alone", "square first", "square behind"],
)
def test_square_is_held_against_gradients_where_they_have_tried(
    order: tuple[str, ...], alone: bool, broken: dict[str, tuple[int, ...]], raised: bool
) -> None:
    kinds = {"pgd": "white_box", "square": "gradient_free", "noise": "noise"}
    entries = tuple(Entry(n, kinds[n], "fool", 1, "linf", 1, 1, 0.0, True) for n in order)
    rows = np.arange(10)
    cells = {place: cell(rows, rows < 0) for place in (CLEAN, SWAP)}
    for name in order:
        cells[name, EPSILON] = cell(rows, np.isin(rows, broken.get(name, ())))
    plan = Plan(entries, (EPSILON,), 10, 1, alone, (0, 0), "a", "b")
    lines = flags(Robustness({0: worst_case(plan, cells)}), 10, Gradients(10, 0))
    assert [line.startswith("Square") for line in lines] == [True] * raised


# Saved pictures


@pytest.mark.parametrize("kept", [(True, True), (True, False)], ids=["all kept", "one not kept"])
def test_pictures_are_saved_where_every_cell_kept_them(kept: Any, tmp_path: Path) -> None:
    config = config_of("noise", "pgd").attack
    entries = tuple(Entry(n, "noise", "fool", 1, "linf", 1, 1, 0.0, True) for n in ("noise", "pgd"))
    plan = Plan(entries, (0.0, EPSILON), 2, 1, False, (0, 0), "a", "b")
    cells = CellFolder(tmp_path / "cells" / "plain" / "curve", "it", plan)
    rows = np.arange(2)
    for place in (CLEAN, SWAP, ("noise", 0.0), ("pgd", 0.0)):
        cells[place] = cell(rows, rows < 0)
    for entry, with_pictures in zip(entries, kept, strict=True):
        pictures = np.zeros((2, 3, 1, 1), np.uint8) if with_pictures else None
        cells[entry.name, EPSILON] = replace(cell(rows, rows < 0), x_adv=pictures)
    curve = worst_case(plan, cells)
    if all(kept):
        saved.check_saving(config, tmp_path / "cells")
        assert set(pictures_at(curve, cells, EPSILON)) == {0, 1}
        return
    with pytest.raises(UserError, match="made without --save"):
        saved.check_saving(config, tmp_path / "cells")
    with pytest.raises(UserError, match="was not kept"):
        pictures_at(curve, cells, EPSILON)


def test_a_radius_to_save_at_that_is_not_run_is_refused(tmp_path: Path) -> None:
    config = config_of("noise", epsilons=(0.0, 0.5)).attack
    with pytest.raises(UserError, match="none of attack.epsilons"):
        saved.check_saving(config, tmp_path)


# Texts


def test_a_suffix_begins_as_tokens_that_come_back(plain: Immunized) -> None:
    tokenizer = plain.task.guard.encoder.tokenizer
    start = suffixes._start(tokenizer, 5)
    texts = [record.text for record in ROWS_OF_DATA[:3]]
    rewriting = Rewriting(plain, ROWS_OF_DATA[:3])
    written = suffixes.with_suffix(tokenizer, texts, [start] * 3)
    for row, own in zip(
        rewriting.whole(written, range(3), "it"),
        rewriting.whole(texts, range(3), "it"),
        strict=True,
    ):
        assert row.ids[row.user[1] - 5 : row.user[1]] == start
        assert len(row.ids) == len(own.ids) + 5, "it grows by the suffix, and nothing is cut"


def test_a_suffix_that_would_be_cut_is_an_error(plain: Immunized) -> None:
    rewriting = Rewriting(plain, ROWS_OF_DATA[:2])
    long = ["a word " * 2_000] * 2
    with pytest.raises(UserError, match="is not read at once; raise max_length"):
        rewriting.whole(long, range(2), "the text with a suffix")


# All of it


@pytest.fixture
def watched() -> Iterator[set[Any]]:
    """The code of every function that is entered."""
    entered: set[Any] = set()

    def note(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            entered.add(frame.f_code)

    sys.setprofile(note)
    yield entered
    sys.setprofile(None)


@pytest.mark.robustness
def test_everything_in_attacks_is_reached_from_the_verb(
    plain: Immunized, watched: set[Any], tmp_path: Path
) -> None:
    """Traced, not run, where that will do."""
    cut = [{"below": 0.0, "do": "reject"}, {"below": 0.2, "do": "smooth", "n": 1, "sigma": 0.1}]
    system = replace(system_of(base()), policy=Policy.from_config({"branches": cut}))
    names = [name for name, each in REGISTRY.items() if each.route in (ROWS, WHOLE)]
    config, key = config_of(*names).attack, jax.random.key(0)
    with config.unlocked():
        config.attacks.policy.samples = config.attacks.pinned.samples = 2
        config.attacks.by_weight = {"search": "pgd", "climb": "weighted", "steps": 1}
    suite = make_suite(config, system, plain)
    x, rows = system.rows(ROWS_OF_DATA[:4])
    rows |= {"clean": np.uint8(255 * x), "donors": np.uint8(255 * x[:, None])}
    params = {"own": system.params, "other": plain.params}
    for each in suite.attacks.values():
        program = suite._whole(each) if each.whole else suite._search(each)
        jax.eval_shape(program, params, rows, jnp.asarray(x), key, each.at(EPSILON))
    of_texts = system.params, rows, jnp.asarray(x), key
    radii = jnp.float32(EPSILON), jnp.float32(0.1)
    for name in ("embedding", "joint"):
        embeddings = functools.partial(_embeddings, system, name, "linf", 1, 1)
        jax.eval_shape(embeddings, *of_texts, radii)
    jax.eval_shape(
        lambda *args: _perturb(
            *(system, "universal_picture", "universal_picture", "linf", 1, 1, 2, ""),
            *(args[0], args[1], args[2][:1], args[3], radii[0]),
        ),
        *of_texts,
    )
    rewriting = Rewriting(plain, ROWS_OF_DATA[:2])
    small = {
        "edits": REGISTRY["edits"].changed("", steps=1, candidates=2),
        "gcg": REGISTRY["gcg"].changed("", steps=1, candidates=2, tokens=2),
    }
    words = TextSuite(small, "linf", EPSILON, 2, 1, 0)
    for name, each in small.items():
        words._attacked(each, rewriting, name, np.arange(2))
    sys.setprofile(None)
    unreached = {f.__qualname__ for f in attacks_there_are() if f.__code__ not in watched}
    assert unreached == set()


@pytest.mark.robustness
def test_what_is_saved_is_read_back_as_a_benchmark_and_a_second_call_goes_on(
    tmp_path: Path, plain: Immunized, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(ROWS_OF_DATA, tmp_path / "data", "test")
    write_jsonl(records("implicit", "val", 4), tmp_path / "data", "val")
    config = config_of("noise:restarts=1", "edits:candidates=2")
    args = argparse.Namespace(
        model=["plain=toy://llava"],
        data=[str(tmp_path / "data" / "test.jsonl")],
        **{
            "validation": [str(tmp_path / "data" / "val.jsonl")],
            "surrogate": None,
            "attack": ["noise:restarts=1", "edits:candidates=2"],
        },
        **{"save": str(tmp_path / "saved"), "certify": 0, "config": config, "limit": 6},
        **{"prompt": "short", "store": None, "noise_seed": None, "mesh": None, "dtype": "auto"},
        **{"remat": None, "out": str(tmp_path / "out")},
    )
    assert attack.main(args) == 0
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures["plain.attack.noise.asr"]["n"] <= 6 and "plain.attack.edits.asr" in figures
    assert figures["plain.linf.group.implicit.8"]["n"] <= 6
    for fpr in ("fpr_1", "fpr_5"):
        sides = [figures[f"plain.{fpr}.edits.{side}"]["n"] for side in ("recall", "specificity")]
        assert sum(sides) == 6
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Each attack" in text and "AutoAttack" in text and "similarity" in text
    for table in ("linf_8", "edits"):
        with LeftOut(tmp_path / "rejected.jsonl") as left_out:
            path = tmp_path / "saved" / "plain" / f"{table}.jsonl"
            (rows,) = read_benchmarks([f"saved=table:{path}"], left_out).values()
        assert len(rows) == 6 and not left_out.total
        for line in path.read_text().splitlines():
            assert "/" not in json.loads(line)["provenance"]["file"], "a path of one machine"
        assert {row.label for row in rows} <= {"safe", "unsafe"}
    again = plain.task.guard.encoder.levels(rows[0].images[0])
    assert np.abs(255 * again - np.round(255 * again)).max() < 1e-3
    cells = sorted((tmp_path / "out" / "cells").rglob("*.*"))
    stamps = [file.stat().st_mtime_ns for file in cells]
    assert attack.main(args) == 0
    assert [file.stat().st_mtime_ns for file in cells] == stamps
    assert "results of an earlier run are there" in capsys.readouterr().out


def test_the_list_is_printed_without_models_or_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attack", "--list"]) == 0
    assert capsys.readouterr().out.strip() == registry.listing()
