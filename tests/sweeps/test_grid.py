"""Which configurations a sweep has, before anything runs."""

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.sweeps.grid import parse_values, rows_of, variant_of

GUARD, FORGE = "configs/guard.py", "configs/impforge.py"
WEIGHTS = [f"rewards.weights.{name}=0.5,1,2" for name in ("safety", "semantic", "overlap")]


def test_the_weight_grid_is_every_combination_and_the_base_is_one_of_them() -> None:
    rows = rows_of(f"{FORGE}:tiny", grid=WEIGHTS)
    assert len(rows) == 27 and rows[0].name == "base" and not rows[0].settings
    assert all(row.differences(rows[0]) for row in rows[1:])


def test_one_at_a_time_each_row_differs_in_one_field_alone() -> None:
    grid = [*WEIGHTS, "rewards.overlap.tau=0.1,0.2,0.3"]
    base, *others = rows_of(f"{FORGE}:tiny", ["--config.rewards.overlap.tau=0.2"], [], grid, True)
    assert [row.name for row in others] == [
        *("safety=0_5", "safety=2", "semantic=0_5", "semantic=2", "overlap=0_5", "overlap=2"),
        *("tau=0_1", "tau=0_3"),
    ]
    assert [len(row.differences(base)) for row in others] == [1] * 8
    assert others[0].differences(base) == {"rewards.weights.safety": (1.0, 0.5)}


def test_variants_times_values_are_all_pairs_and_no_two_rows_are_one_configuration() -> None:
    rows = rows_of(
        f"{GUARD}:tiny", [], ["no_benign", "explicit_only"], ["optim.learning_rate=1e-3,2e-3"]
    )
    assert [row.name for row in rows] == [
        *("base", "learning_rate=1e-3"),
        *("no_benign,learning_rate=1e-3", "no_benign,learning_rate=2e-3"),
        *("explicit_only,learning_rate=1e-3", "explicit_only,learning_rate=2e-3"),
    ]
    assert len({str(row.fields) for row in rows}) == 6


@pytest.mark.parametrize("name", ["no_benign", "explicit_only", "vision_lora", "language_lora"])
@pytest.mark.parametrize("scale", ["tiny", "llava_7b"])
def test_an_ablation_is_of_the_bases_own_scale(scale: str, name: str) -> None:
    base, row = rows_of(f"{GUARD}:{scale}", variants=[name])
    changed = row.differences(base)
    assert changed and all(field.startswith(("data.sources.", "lora.")) for field in changed)
    assert row.fields["model.path"] == base.fields["model.path"]


def test_a_variant_of_another_scale_alone_is_refused() -> None:
    with pytest.raises(UserError, match="at_once: is tiny's .* llava_7b has none"):
        variant_of(f"{GUARD}:llava_7b", "at_once")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["optim.learning_rates=1"], "did you mean 'optim.learning_rate'"),
        (["optim.learning_rate=fast"], "fast"),
        (["optim.learning_rate"], "FIELD=VALUE"),
        (["optim.learning_rate=1,,2"], "FIELD=VALUE"),
        (["train.steps=1,1"], "values that differ"),
        (["train.steps=(1,2"], "a bracket that stands alone"),
        (["train.steps=1),2"], "a bracket that stands alone"),
        (["train.steps=1", "train.steps=2"], "a field twice"),
    ],
)
def test_what_cannot_be_set_is_refused_before_any_run(grid: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows_of(f"{GUARD}:tiny", grid=grid)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("(0, 1),(2, 3)", ["(0, 1)", "(2, 3)"]),
        ("((0, 1), (2, 3)),((4,),)", ["((0, 1), (2, 3))", "((4,),)"]),
        ("({'a': (1, 2)}, {'b': 3}),()", ["({'a': (1, 2)}, {'b': 3})", "()"]),
        ("('a, (b', 'it\\'s, c'),('d',)", ["('a, (b', 'it\\'s, c')", "('d',)"]),
        ("'May I, please?',\"Don't :(, now\",''", ["May I, please?", "Don't :(, now", ""]),
        ("Don't,Can't", ["Don't", "Can't"]),
        ("a 'b, c'", ["a 'b", "c'"]),
        ("1e-4, 8/255", ["1e-4", "8/255"]),
    ],
)
def test_a_comma_in_brackets_or_quotes_parts_no_values(given, values) -> None:
    assert parse_values(f"a.field={given}") == ("a.field", values)


def test_values_reach_the_configuration_as_they_are_written(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'text': 'x', 'pairs': ((0, 1), (2, 3))})\n"
    )
    grid = ["text='May I, please?',No", "pairs=((4, 5), (6, 7)),((8, 9),)"]
    rows = rows_of(f"{tmp_path}/mine.py", grid=grid)[1:]
    assert {row.fields["text"] for row in rows} == {"May I, please?", "No"}
    assert [row.fields["pairs"] for row in rows[:2]] == [[[4, 5], [6, 7]], [[8, 9]]]
    assert not any("." in row.name or "/" in row.name for row in rows)


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_fields_of_one_last_name_may_have_the_same_values(one_at_a_time) -> None:
    grid = ["rewards.safety.path=a,b", "rewards.semantic.path=a,b", "ppo.seed=1"]
    rows = rows_of(f"{FORGE}:tiny", grid=grid, one_at_a_time=one_at_a_time)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names) == (6 if one_at_a_time else 5)
    assert all("rewards_" in name or name in ("base", "seed=1") for name in names)


def test_the_name_of_the_row_that_others_are_compared_with_is_no_variants(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\n"
        "VARIANTS = ['one', 'one_base']\n"
        "def get_config(name):\n"
        "    return ConfigDict({'name': name})\n"
    )
    with pytest.raises(UserError, match="--variants base: that is what"):
        rows_of(f"{tmp_path}/mine.py:one", variants=["base"])


def test_fields_with_one_last_name_are_told_apart() -> None:
    grid = ["data.augment.long=0.1", "rewards.safety.path=a", "rewards.semantic.path=b"]
    row = rows_of(f"{FORGE}:tiny", grid=grid[1:])[1]
    assert row.name == "rewards_safety_path=a,rewards_semantic_path=b"


def test_a_variant_with_a_seed_of_its_own_alone_is_no_row(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\n"
        "VARIANTS = ['one', 'two', 'three']\n"
        "def get_config(name):\n"
        "    return ConfigDict({'seed': len(name), 'rate': 1.0 if name == 'three' else 2.0})\n"
    )
    base, *others = rows_of(f"{tmp_path}/mine.py:one", variants=["two", "three"], seeds=["seed"])
    assert [row.name for row in others] == ["three"]
    assert others[0].differences(base) == {"rate": (2.0, 1.0)}
