"""Robustness figures, runs that survive a kill, and the seal on a report that is not complete."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from crossguard_jax.attacks.curves import CLEAN, SWAP, Cell, Curve, Entry, Plan, worst_case
from crossguard_jax.attacks.named import NamedAttack
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget
from crossguard_jax.attacks.registry import REGISTRY
from crossguard_jax.attacks.suite import Suite
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core import metrics
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.evals.robustness.breakdown import attacks_section
from crossguard_jax.evals.robustness.figures import Robustness, compare, figures, share
from crossguard_jax.evals.robustness.lint import missing, stamp, unequal
from crossguard_jax.evals.robustness.plots import robustness_curves
from crossguard_jax.evals.robustness.report import robustness_section
from crossguard_jax.evals.robustness.runs import CellFolder, converge, measure, read_curve
from crossguard_jax.evals.robustness.systems import _of_targets
from crossguard_jax.report.blocks import Bullets, Text
from crossguard_jax.report.report import Report
from tests.attacks import zoo
from tests.attacks.zoo import LEVEL

ENTRIES = (
    Entry("pgd", "white_box", "fool", 1, "linf", 10, 1, 0.0, True),
    Entry("square", "gradient_free", "fool", 1, "linf", 200, 1, 0.0, True),
)
RADII = (0.0, 4 * LEVEL, 8 * LEVEL, 16 * LEVEL)
N = 400
FALLS = np.random.default_rng(0).uniform(0, 15, N) * LEVEL  # where each row falls


def cell(rows: np.ndarray, won: np.ndarray, caught: Any = np.nan, spread: float = 0.0) -> Cell:
    size = rows.shape
    margin = np.where(won, 1.0, -1.0)
    detector = np.broadcast_to(np.asarray(caught, float), size).copy()
    return Cell(rows, margin, margin, detector, np.full(size, spread))


def curve(
    falls: np.ndarray = FALLS,
    radii: tuple[float, ...] = RADII,
    entries: tuple[Entry, ...] = ENTRIES,
    wrong: int = 20,
    ceiling: float = 0.9,
    detector: float = np.nan,
    spread: float = 0.0,
    **plan: Any,
) -> Curve:
    """A curve whose rows fall at known radii, to the first attack; the first rows are wrong."""
    n = len(falls)
    rows = np.arange(wrong, n)
    cells = {
        CLEAN: cell(np.arange(n), np.arange(n) < wrong, detector, spread),
        SWAP: cell(rows, np.arange(len(rows)) < ceiling * len(rows), detector),
    }
    for epsilon in radii:
        for i, entry in enumerate(entries):
            won = (falls[rows] < epsilon) & (i == 0)
            cells[entry.name, epsilon] = cell(rows, won, detector)
    facts = {"rows": n, "draws": 8, "alone": False, "key": (0, 7), "pictures": "a"} | plan
    return worst_case(Plan(entries, radii, conditions="b", **facts), cells)


def times(multiple: int, what: str, change: float = 0.0) -> Curve:
    entries = tuple(replace(e, **{what: multiple * getattr(e, what)}) for e in ENTRIES)
    return curve(FALLS - change, (8 * LEVEL,), entries)


def complete(**options: Any) -> Robustness:
    convergence = {
        what: {1.0: times(1, what), 2.0: times(2, what)} for what in ("steps", "restarts")
    }
    return Robustness({0: curve(**options)}, convergence)


def without(kind: str) -> tuple[Entry, ...]:
    return tuple(entry for entry in ENTRIES if entry.kind != kind)


def test_shares_are_of_the_rows_that_they_say() -> None:
    found = figures(Robustness({0: curve()}))
    right = np.arange(N) >= 20
    falls = FALLS < 8 * LEVEL
    assert found["linf.clean.accuracy"] == metrics.proportion(right)
    assert found["linf.8.robust_accuracy"] == metrics.proportion(right & ~falls)
    assert found["linf.8.asr"] == metrics.proportion(falls[right])
    assert found["linf.0.robust_accuracy"] == found["linf.clean.accuracy"]
    assert found["linf.swap.asr"].value == pytest.approx(0.9)
    assert found["linf.8.first.pgd"] == found["linf.8.asr"]
    assert found["linf.8.first.square"].value == 0
    assert "linf.8.caught" not in found


def test_what_is_rejected_is_robust_unless_it_was_clean() -> None:
    entries = (Entry("pgd", "adaptive", "fool", 1, "l2", 10, 1, 0.0, True),)
    rows = np.arange(1, 8)
    cells = {
        CLEAN: Cell(
            np.arange(8),
            *(np.full(8, -1.0), np.full(8, -1.0)),
            np.where(np.arange(8) < 1, 1.0, -1.0),
            np.zeros(8),
        ),
        SWAP: cell(rows, rows > 0, -1.0),
        ("pgd", 0.5): cell(rows, rows < 6, np.where(rows < 3, -1.0, np.where(rows < 7, 1.0, -1.0))),
    }
    plan = Plan(entries, (0.5,), 8, 8, False, (0,), "a", "b")
    found = figures(Robustness({0: worst_case(plan, cells)}))
    values = {name: round(estimate.value * 56) / 7 for name, estimate in found.items()}
    assert values["l2.clean.rejected"] == values["l2.clean.accuracy"] / 7 == 1
    # Rows 1, 2 broken; 3, 4, 5 fooled and caught; 6 only rejected; 7 stands.
    of_right = {name: found[f"l2.0_5.{name}"].value * 7 for name in ("asr", "caught", "denied")}
    assert of_right == pytest.approx({"asr": 2, "caught": 3, "denied": 4})
    assert found["l2.0_5.robust_accuracy"].value == 5 / 8


TEN, FALL = [Record(str(i), (), "t", "ab"[i < 4]) for i in range(10)], 8 * LEVEL


def of_ten(
    name: str, goal: str, lost: int, caught: np.ndarray | float = np.nan, alone: bool = False
) -> Robustness:
    """Ten rows that are right; PGD has all of its results caught as given, and breaks none; another
    attack breaks the first ``lost``."""
    other, rows = Entry(name, "white_box", goal, 1, "linf", 10, 1, 0.0, True), np.arange(10)
    cells = {place: cell(rows, rows < 0) for place in (CLEAN, SWAP)}
    cells["pgd", FALL] = cell(rows, rows < 0, caught)
    deny = np.where(rows < lost, 1.0, -1.0) if goal == "deny" else np.nan
    cells[name, FALL] = cell(rows, (rows < lost) & (goal == "fool"), deny)
    facts = {"rows": 10, "draws": 8, "alone": alone, "key": (0, 7), "pictures": "a"}
    plan = Plan((ENTRIES[0], other), (FALL,), conditions="b", **facts)
    return Robustness({0: worst_case(plan, cells)})


def asr(name: str, result: Robustness) -> float:
    attacks = {each: REGISTRY[each] for each in ("pgd", name)}
    section = attacks_section(attacks, {"a": result}, {}, {}, FALL, TEN)
    return section.figures[f"a.attack.{name}.asr"].value


def test_a_denials_share_is_of_what_it_has_rejected_itself() -> None:
    result = of_ten("denial", "deny", 2, np.where(np.arange(10) < 7, 1.0, -1.0))
    assert result.any.denied.sum() == 7 and asr("denial", result) == 0.2


@pytest.mark.parametrize("alone", [True, False])
def test_a_targets_share_is_of_rows_with_another_answer(alone: bool) -> None:
    others = np.array([record.label != "b" for record in TEN])
    result = replace(of_ten("targeted", "fool", 7, alone=alone), among={"targeted": others})
    assert TEN[3].label == "b" and asr("targeted", result) == 3 / 6
    own = figures(result)
    if alone:
        assert own["linf.8.alone.targeted"] == share(
            np.arange(10)[None, 4:] < 7, np.ones((1, 6), bool)
        )
        assert own["linf.8.alone.pgd"].n == 10


def test_an_attack_is_of_the_rows_with_another_answer_than_it_wants() -> None:
    system = Mock(Immunized, task=SimpleNamespace(labels=("safe", "unsafe")))
    config = ConfigDict({"attacks": {"targeted": {}, "apgd": {}, "other": {"search": "pgd"}}})
    config.attacks["other"].update({"climb": "target_loss", "target": "unsafe"})
    found = _of_targets(config, system, {"labels": np.array([0, 1, 1])})
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "targeted": [False, True, True],
        "other": [True, False, False],
    }


def test_seeds_do_not_count_as_rows() -> None:
    seeds = Robustness({0: curve(), 1: curve(FALLS + 3 * LEVEL)})
    found = figures(seeds)
    name = "linf.8.robust_accuracy"
    each = [found[f"{name}.seed_{seed}"] for seed in (0, 1)]
    assert found[name].value == pytest.approx(np.mean([e.value for e in each]))
    assert found[name].n == N and found[name].low < found[name].value < found[name].high
    assert each[0].value < each[1].value


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_one_seeds_share_is_a_proportion_with_wilsons_interval(rate: float) -> None:
    hits = np.random.default_rng(1).uniform(size=(1, 77)) < rate
    assert share(hits, np.ones_like(hits)) == metrics.proportion(hits[0])
    assert share(hits, np.zeros_like(hits)).n == 0


def test_differences_are_paired_over_the_same_rows() -> None:
    weak, strong = Robustness({0: curve()}), Robustness({0: curve(FALLS + 2 * LEVEL)})
    found = compare(strong, weak)
    right = np.arange(N) >= 20
    hits = [right & (FALLS + shift * LEVEL >= 8 * LEVEL) for shift in (2, 0)]
    assert found["linf.8.robust_accuracy_difference"] == metrics.paired_difference(*hits)
    assert found["linf.clean.accuracy_difference"].value == 0
    seeds = Robustness({0: curve(FALLS + 2 * LEVEL), 1: curve(FALLS + 2 * LEVEL)})
    several = compare(seeds, weak)["linf.8.robust_accuracy_difference"]
    assert several.value == pytest.approx(hits[0].mean() - hits[1].mean())
    with pytest.raises(UserError, match="different rows"):
        compare(strong, Robustness({0: curve(pictures="other")}))


def test_a_complete_table_is_stamped_complete() -> None:
    assert missing(complete()) == ()
    (text,) = stamp({"guard": ()})
    assert isinstance(text, Text) and "**COMPLETE.**" in text.text


ADAPTIVE = (*ENTRIES, replace(ENTRIES[0], name="aware", kind="adaptive"))
WITH_EOT = (replace(ENTRIES[0], samples=8), ENTRIES[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"radii": RADII[1:]}, "radius 0"),
        ({"radii": (0.0, 16 * LEVEL)}, "two radii"),
        ({"falls": FALLS - 2 * LEVEL, "radii": (0.0, *RADII[2:])}, "fall there"),
        ({"radii": RADII[:3]}, "reaches the ceiling: ASR 48.9%"),
        ({"entries": without("gradient_free")}, "without gradients"),
        ({"entries": without("white_box")}, "white-box"),
        ({"detector": -1.0}, "knows the detector"),
        ({"spread": 0.1}, "EOT"),
        ({"spread": 0.1, "entries": WITH_EOT, "draws": 1}, "EOT"),
        ({"wrong": 320}, "rows: 80"),
        ({"wrong": N}, "no row was right"),
    ],
    ids=str,
)
def test_what_is_missing_is_named(options: Mapping[str, Any], words: str) -> None:
    lines = missing(complete(**options))
    assert any(words in line for line in lines), lines
    text, bullets = stamp({"guard": lines})
    assert "**INCOMPLETE.**" in text.text
    assert isinstance(bullets, Bullets) and bullets.items[0].startswith("guard: ")


def test_what_several_systems_lack_is_said_once() -> None:
    lacks = {"one": ("a curve", "rows"), "other": ("rows",), "third": ("rows", "a curve")}
    _, bullets = stamp(lacks, ("other rows",))
    assert isinstance(bullets, Bullets)
    assert bullets.items == (
        "one; third: a curve",
        "Every system: rows",
        "Between systems: other rows",
    )


@pytest.mark.parametrize(
    "options",
    [{"detector": -1.0, "entries": ADAPTIVE}, {"spread": 0.1, "entries": WITH_EOT}],
    ids=["detector", "random"],
)
def test_what_was_named_can_be_supplied(options: Mapping[str, Any]) -> None:
    lines = missing(complete(**options))
    # The convergence here is of other attacks, and is all that is left.
    assert len(lines) == 2 and all("convergence" in line for line in lines), lines


@pytest.mark.parametrize("what", ["steps", "restarts"])
def test_convergence_is_measured_on_the_attacks_doubled(what: str) -> None:
    whole = complete()

    def lines(change: Mapping[float, Curve]) -> tuple[str, ...]:
        return missing(replace(whole, convergence={**whole.convergence, what: change}))

    assert f"convergence in {what}" in lines({})[0]
    assert "twice as many" in lines({1.0: times(1, what)})[0]
    assert "doubled, ASR goes" in lines({1.0: times(1, what), 2.0: times(2, what, LEVEL)})[0]
    assert "doubled" in lines({1.0: times(1, what), 2.0: times(1, what)})[0]
    other = (
        curve(radii=(5 * LEVEL,)),
        curve(radii=(5 * LEVEL,), entries=times(2, what).plan.attacks),
    )
    assert "radius of the curve" in lines({1.0: other[0], 2.0: other[1]})[0]
    assert lines({1.0: times(1, what), 2.0: times(2, what, 0.05 * LEVEL)}) == ()


def test_a_curve_that_is_carried_and_not_earned_is_noticed() -> None:
    whole = curve()
    idle = replace(whole, fresh=np.zeros_like(whole.fresh))
    lines = missing(replace(complete(), curves={0: idle}))
    assert any("within smaller radii" in line for line in lines)
    falling = replace(whole, won=whole.won[::-1])
    assert any("monotone" in line for line in missing(replace(complete(), curves={0: falling})))


def test_systems_that_had_other_searches_are_not_compared_in_silence() -> None:
    one = Robustness({0: curve()})
    others = {
        "same rows": curve(pictures="c"),
        "same radii": curve(radii=RADII[:3]),
        "another budget": curve(entries=(replace(ENTRIES[0], steps=7), ENTRIES[1])),
        "only": curve(entries=without("gradient_free")),
    }
    for words, other in others.items():
        (line,) = unequal({"a": one, "b": Robustness({0: other})})
        assert words in line
    # What a detector or randomness is for has nothing to do where there is none.
    aware = (replace(ENTRIES[0], kind="adaptive"), ENTRIES[1])
    for entries in (ADAPTIVE, WITH_EOT, aware):
        assert unequal({"a": one, "b": Robustness({0: curve(entries=entries)})}) == ()


def test_seeds_on_other_rows_are_no_seeds_of_one_system() -> None:
    with pytest.raises(UserError, match="differ in rows"):
        Robustness({0: curve(), 1: curve(pictures="c")})
    with pytest.raises(UserError, match="no curve"):
        Robustness({})


def test_the_section_has_its_seal_first_and_every_figure_in_json(tmp_path: Path) -> None:
    systems = {
        "guard.immunized": complete(falls=FALLS + 2 * LEVEL),
        "guard.plain": replace(complete(), convergence={}),
    }
    section = robustness_section(systems, {"guard.plain": "No defense"})
    assert isinstance(section.blocks[0], Text) and "INCOMPLETE" in section.blocks[0].text
    assert any("No defense: convergence in steps" in item for item in section.blocks[1].items)
    Report("r", [section], {}).write(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["guard.immunized.linf.8.robust_accuracy"]["n"] == N
    assert found["guard.immunized.minus.guard.plain.linf.8.robust_accuracy_difference"]["value"] > 0
    assert found["guard.immunized.linf.8.steps_times_2.asr"]["n"] == N - 20
    assert (tmp_path / "plots" / "robustness_linf.pdf").exists()
    assert "robust at 8/255" in (tmp_path / "report.md").read_text()
    sealed = robustness_section({"guard.immunized": complete()})
    assert "**COMPLETE.**" in sealed.blocks[0].text
    with pytest.raises(UserError, match="0 norms"):
        robustness_section({})


LINEAR = zoo.linear_animal(zoo.linear, 1, 9)
PGD = NamedAttack(pgd, Budget(0.0, steps=2, relative_step=1.0, random_start=False))
GIVEN = LINEAR.params, LINEAR.x, LINEAR.rows, [0.0, 4 * LEVEL, 8 * LEVEL], jax.random.key(3)


def test_every_system_of_a_large_table_has_a_look_of_its_own():
    shares = {epsilon: metrics.proportion(FALLS < epsilon) for epsilon in RADII}
    systems = {f"system {i}": shares for i in range(24)}
    for axes in robustness_curves(systems, systems, {}, "linf").axes:
        looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
        assert len(looks) == len(axes.lines) == 24
        assert len(axes.collections) == 2, "bands of all would hide the lines"


def linear_suite(**options: Any) -> Suite:
    return Suite({"pgd": PGD}, zoo.linear, batch_size=16, **options)


def test_a_folder_gives_the_curve_again_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    suite = linear_suite(keep=True)
    whole = measure(suite, *GIVEN, folder=tmp_path / "a", system="linear")
    again = read_curve(tmp_path / "a")
    assert again.plan == whole.plan and 0 < whole.won[1].sum() < whole.won[2].sum()
    for name in ("right", "won", "by", "loss", "fresh", "swapped"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    last = tmp_path / "a" / f"pgd@{8 * LEVEL!r}.npz"
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    last.unlink()
    with pytest.raises(UserError, match="not finished"):
        read_curve(tmp_path / "a")
    resumed = measure(suite, *GIVEN, folder=tmp_path / "a", system="linear")
    np.testing.assert_array_equal(resumed.won, whole.won)
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    assert [path for path in now if now[path] != written[path]] == [last]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"system": "other"}, "system was 'linear' and is 'other'"),
        ({"key": jax.random.key(4)}, "plan.key"),
        ({"epsilons": [0.0, 4 * LEVEL]}, "plan.epsilons"),
        ({"x": 1 - LINEAR.x}, "plan.pictures"),
        ({"steps": 2.0}, r"plan.attacks\[0\].steps was 2 and is 4"),
    ],
    ids=str,
)
def test_another_runs_folder_is_refused(
    tmp_path: Path, change: Mapping[str, Any], words: str
) -> None:
    names = ("params", "x", "rows", "epsilons", "key")
    given = dict(zip(names, GIVEN, strict=True)) | {"folder": tmp_path, "system": "linear"}
    plans = []
    linear_suite().run(*GIVEN, store=lambda plan: plans.append(plan) or {})
    CellFolder(tmp_path, "linear", plans[0])
    with pytest.raises(UserError, match=words):
        measure(linear_suite(), **(given | change))


def test_convergence_runs_the_suite_itself_once(tmp_path: Path) -> None:
    params, x, rows, _, key = GIVEN
    found = converge(linear_suite(), params, x, rows, 4 * LEVEL, key, tmp_path, "linear")
    assert {what: list(curves) for what, curves in found.items()} == {
        "steps": [0.5, 1.0, 2.0],
        "restarts": [1.0, 2.0],
    }
    assert len(list(tmp_path.iterdir())) == 4
    spent = [c.plan.attacks[0] for c in (*found["steps"].values(), *found["restarts"].values())]
    assert [e.steps for e in spent] == [1, 2, 4, 2, 2]
    assert [e.restarts for e in spent] == [1, 1, 1, 1, 2]
