"""Flags and configurations come to one object."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from crossguard_jax import cli
from crossguard_jax.core.config import describe_variants, load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.records import LeftOut, Record
from crossguard_jax.evals.comparison import (
    ComparedData,
    comparison_of,
    parse_model,
    told_apart,
)
from crossguard_jax.evals.evaluate import read_benchmarks
from tests.downloads import DOWNLOADS

FLAGS: dict[str, Any] = {
    name: None
    for name in ("config", "model", "data", "shards", "prompt", "threshold", "missing_pictures")
} | {"speed_rows": None, "export": None}


def arguments(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**FLAGS | given)


def config(variant: str, folder: Path, *more: str) -> Any:
    """A variant whose benchmarks are all there, as empty folders."""
    config = load_config(f"configs/evals.py:{variant}", [f"--config.folder={folder}", *more])
    for each in config.benchmarks.values():
        (folder / each.folder).mkdir(parents=True, exist_ok=True)
    return config


def test_flags_and_a_configuration_that_say_the_same_come_to_the_same(tmp_path):
    on = [
        f"--config.systems.{name}.on=false"
        for name in load_config("configs/evals.py:paper").systems
        if name not in ("crossguard", "rcs")
    ]
    on += [f"--config.benchmarks.{name}.on=false" for name in ("figstep", "vlguard", "vqav2")]
    on += ["--config.benchmarks.mm_safetybench.per_category=0", "--config.threshold=0.4"]
    on += ["--config.systems.rcs.on=true", "--config.systems.crossguard.adapter=runs/train"]
    on += ["--config.missing_pictures=in"]
    configured = comparison_of(arguments(config=config("paper", tmp_path, *on)))
    flagged = comparison_of(
        arguments(
            model=["crossguard=runs/merged+runs/train", "rcs=runs/rcs"],
            data=[
                f"jailbreakv=jailbreakv:{tmp_path}/JailBreakV_28K:mini",
                f"mm_safetybench=mm_safetybench:{tmp_path}/MM-SafetyBench:SD_TYPO",
                f"siuo=siuo:{tmp_path}/SIUO",
            ],
            threshold=0.4,
            missing_pictures="in",
        )
    )
    assert configured.meta == flagged.meta
    same = ("named", "threshold", "samples", "seed", "published", "missing_pictures", "exports")
    for name in same:
        assert getattr(configured, name) == getattr(flagged, name), name
    assert [(s.name, s.path, s.adapter) for s in configured.systems] == [
        (s.name, s.path, s.adapter) for s in flagged.systems
    ]
    assert [d.spec for d in configured.data] == [d.spec for d in flagged.data]


def test_the_controls_are_of_crossguards_own_path_unless_they_are_given_one(tmp_path):
    over = ["--config.systems.crossguard.path=a", "--config.systems.crossguard.adapter=b"]
    over += ["--config.systems.picture_only.path=picture_only:c"]
    over += ["--config.systems.picture_only.adapter="]
    for flags in (over, over[::-1]):
        systems = comparison_of(arguments(config=config("paper", tmp_path, *flags))).systems
        given = {s.name: (s.path, s.adapter) for s in systems}
        assert given["crossguard"] == ("a", "b") and given["text_only"] == ("text_only:a", "b")
        assert given["picture_only"] == ("picture_only:c", None)


@pytest.mark.parametrize("variant", describe_variants("configs/evals.py"))
def test_every_variant_reads_sets_that_there_are_in_its_own_order(variant, tmp_path):
    comparison = comparison_of(arguments(config=config(variant, tmp_path)))
    for each in comparison.data:
        name, _, spec = each.spec.partition("=")
        reader = spec.partition(":")[0]
        assert reader == name and reader in sources.SOURCES
        assert (":" in spec.partition(":")[2]) <= sources.has_option(reader, "split")
    places = [e.place for e in load_config(f"configs/evals.py:{variant}").systems.values()]
    assert sorted(places) == list(range(len(places)))
    assert comparison.systems[0].name == comparison.named == "crossguard"
    assert comparison.systems[-1].name == "always_safe"
    assert comparison.threshold == "own"


@pytest.mark.parametrize("variant", describe_variants("configs/evals.py"))
def test_every_variant_reads_its_sets_in_the_layouts_that_are_published(variant, tmp_path):
    given = config(variant, tmp_path)
    for name, each in given.benchmarks.items():
        DOWNLOADS[name].write(tmp_path / each.folder, 3)
    with LeftOut(tmp_path / "rejected.jsonl") as left_out:
        for each in comparison_of(arguments(config=given)).data:
            tests = read_benchmarks([each.spec], left_out, limit=2)
            assert 0 < sum(map(len, tests.values())) <= 2, each.spec
            assert all(name.startswith(each.spec.partition("=")[0]) for name in tests)
    assert not left_out.total


def test_the_command_lines_systems_come_after_the_configurations_as_rows_more(tmp_path):
    given = arguments(config=config("paper", tmp_path), model=["mine=runs/mine"], threshold=0.3)
    comparison = comparison_of(given)
    assert comparison.systems[-1].name == "mine" and comparison.threshold == 0.3
    assert len(comparison.data) == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.systems.gpt_4o.on=true"], "systems.gpt_4o: has no path; give it"),
        (["--config.threshold=high"], "threshold 'high': give named, own, or a number from 0"),
        (["--config.named=other"], "named 'other' is none of the systems"),
        (["--config.exports=('pdf',)"], "exports 'pdf': choose among inspect, guardbench"),
        (["--config.bootstrap.samples=-5"], "bootstrap.samples -5: give 0 or more"),
        (["--config.benchmarks.siuo.limit=-3"], "benchmarks.siuo.limit -3: give 0 or more"),
        (["--config.benchmarks.siuo.path=/no/where"], "benchmarks.siuo: /no/where is not there"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_field_and_the_mend(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        comparison_of(arguments(config=config("paper", tmp_path, *overrides)))


def test_two_systems_of_one_name_are_refused():
    with pytest.raises(UserError, match="two systems are called 'guard'; write NAME=FOLDER"):
        comparison_of(arguments(model=["a/guard", "b/guard"], data=["d.jsonl"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of --model, --config is needed"),
        (["--model", "m", "--data", "a", "--shards", "b"], "give --data or --shards"),
        (["--config", "configs/evals.py:paper", "--shards", "b"], "--shards goes without --config"),
    ],
)
def test_evaluate_says_what_goes_with_what(words, message, capsys):
    assert cli.main(["evaluate", *words]) == cli.USAGE
    assert message in capsys.readouterr().err


def test_rows_are_drawn_by_category_and_by_number_the_same_ones_each_time():
    records = [Record(str(i), (), "t", category="abc"[i % 3]) for i in range(30)]
    by_category = ComparedData("", per_category=4).drawn(records, 0)
    assert [r.category for r in by_category].count("a") == 4 and len(by_category) == 12
    numbers = [int(r.id) for r in by_category]
    assert numbers == sorted(numbers)
    assert by_category == ComparedData("", per_category=4).drawn(records, 0)
    assert by_category != ComparedData("", per_category=4).drawn(records, 1)
    assert len(ComparedData("", limit=5).drawn(records, 0)) == 5
    both = ComparedData("", limit=6, per_category=4).drawn(records, 0)
    assert len(both) == 6 and {r.category for r in both} == {*"abc"}
    assert ComparedData("").drawn(records, 0) == records


@pytest.mark.parametrize(
    ("spec", "name", "path", "adapter"),
    [
        ("a=runs/x+y", "a", "runs/x", "y"),
        ("runs/steps=200-0/train/model", "model", "runs/steps=200-0/train/model", None),
        ("b=runs/steps=200-0/model", "b", "runs/steps=200-0/model", None),
        ("text_only:runs/steps=2/model", "text_only_model", "text_only:runs/steps=2/model", None),
        ("steps=200-0/model+steps=200-0/a", "model", "steps=200-0/model", "steps=200-0/a"),
    ],
)
def test_an_equals_sign_in_a_path_names_no_system(spec, name, path, adapter, tmp_path, monkeypatch):
    (tmp_path / "steps=200-0/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_model(spec) == (name, path, adapter)


def test_splits_of_one_set_are_told_apart_where_nobody_names_them():
    specs = ["figstep:a:tiny", "figstep:a:all", "own=figstep:b:all", "xstest:c", "a.jsonl"]
    assert told_apart(specs) == [
        *("figstep_tiny=figstep:a:tiny", "figstep_all=figstep:a:all"),
        *specs[2:],
    ]
    assert told_apart(specs[1:]) == specs[1:], "one split is called by its set"
