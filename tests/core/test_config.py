"""Configurations: overrides are typed, and what is mistyped is told the nearest right name."""

import os
from pathlib import Path

import pytest

from crossguard_jax.core.config import (
    check_positive,
    config_files,
    describe_variants,
    find_config,
    load_config,
)
from crossguard_jax.core.errors import UserError

FILE = """
from ml_collections import ConfigDict, config_dict

VARIANTS = ("small", "large")


def get_config(variant):
    width = {"small": 8, "large": 64}[variant]
    return ConfigDict(
        {
            "name": "run",
            "width": width,
            "flag": True,
            "sizes": (1, 2),
            "radii": (0.0, 0.5),
            "mixed": (0.5, "a"),
            "names": (),
            "cut": config_dict.placeholder(float),
            "list": [1],
            "adapter": config_dict.placeholder(str),
            "rules": {},
            "optim": {"learning_rate": 1e-3, "warmup_steps": 10},
            "data": {"sources": {"vqav2": {"weight": 0.5}}},
        }
    )
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "job.py").write_text(FILE)
    return f"{tmp_path / 'job.py'}:small"


def test_a_variant_is_chosen_by_its_name(spec: str) -> None:
    assert load_config(spec).width == 8
    assert load_config(spec.replace("small", "large")).width == 64


def test_an_edit_of_the_same_second_and_size_is_read(spec: str) -> None:
    file = Path(spec.removesuffix(":small"))
    assert load_config(spec).width == 8
    stamp = file.stat().st_mtime_ns
    file.write_text(FILE.replace('"small": 8', '"small": 9'))
    os.utime(file, ns=(stamp, stamp))
    assert load_config(spec).width == 9


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("--config.width=16", "width", 16),
        ("--config.name=a b=c", "name", "a b=c"),
        ("--config.name=", "name", ""),
        ("--config.flag=false", "flag", False),
        ("--noconfig.flag", "flag", False),
        ("--config.flag", "flag", True),
        ("--config.sizes=(3, 4, 5)", "sizes", (3, 4, 5)),
        ("--config.radii=(0, 8/255)", "radii", (0, 8 / 255)),
        ("--config.optim.learning_rate=2/255", "optim.learning_rate", 2 / 255),
        ("--config.optim.learning_rate=1e-3/2", "optim.learning_rate", 5e-4),
        ("--config.optim.learning_rate=-.5 / 2.", "optim.learning_rate", -0.25),
        ("--config.cut=1/2", "cut", 0.5),
        ("--config.mixed=(1/4, 'a 1/2 b')", "mixed", (0.25, "a 1/2 b")),
        ("--config.names=('a', 'b')", "names", ("a", "b")),
        ("--config.name=runs/1/2", "name", "runs/1/2"),
        ("--config.adapter=runs/a", "adapter", "runs/a"),
        ("--config.optim.learning_rate=3", "optim.learning_rate", 3.0),
        ("--config.data.sources.vqav2.weight=0", "data.sources.vqav2.weight", 0.0),
        ("--config.rules={'embed': None}", "rules.embed", None),
    ],
)
def test_an_override_sets_its_field(spec: str, override: str, field: str, value: object) -> None:
    found = load_config(spec, [override])
    for name in field.split("."):
        found = found[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("width", "steps"), [(0, 1), (-1, 1), (8, 0)])
def test_a_number_that_has_to_be_above_zero_is_named_with_the_mend(
    spec: str, width: int, steps: int
) -> None:
    overrides = [f"--config.width={width}", f"--config.optim.warmup_steps={steps}"]
    name, value = ("width", width) if width < 1 else ("optim.warmup_steps", steps)
    with pytest.raises(UserError, match=f"^{name} {value}: .* above 0, --config.{name}=N$"):
        check_positive(load_config(spec, overrides), "width", "optim.warmup_steps")


def test_the_last_of_two_overrides_wins(spec: str) -> None:
    assert load_config(spec, ["--config.width=1", "--config.width=2"]).width == 2


def test_the_result_is_locked_all_the_way_down(spec: str) -> None:
    config = load_config(spec, ["--config.rules={'embed': 'fsdp'}", "--config.width=9"])
    for node in (config, config.optim, config.rules, config.data.sources.vqav2):
        with pytest.raises(AttributeError):
            node.unheard_of = 1


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("--config.widht=16", "width"),
        ("--config.optim.learning_rte=1", "optim.learning_rate"),
        ("--config.learning_rate=1", "optim.learning_rate"),
        ("--config.optm.warmup_steps=1", "optim.warmup_steps"),
        ("--config.data.sources.vqa.weight=1", "data.sources.vqav2.weight"),
        ("--config.optim.learning_rate.x=1", "optim.learning_rate"),
    ],
)
def test_a_mistyped_field_is_told_the_nearest(spec: str, override: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{nearest}'") as caught:
        load_config(spec, [override])
    assert override.removeprefix("--config.").partition("=")[0] in str(caught.value)


def test_a_mistyped_variant_is_told_the_nearest(spec: str) -> None:
    with pytest.raises(UserError, match="no variant 'lrage': did you mean 'large'"):
        load_config(spec.replace("small", "lrage"))


def test_a_missing_variant_is_asked_for(spec: str) -> None:
    with pytest.raises(UserError, match="name a variant.*small, large"):
        load_config(spec.removesuffix(":small"))


@pytest.mark.parametrize(
    "override",
    [
        "--config.width=1.5",
        "--config.width=wide",
        "--config.optim.learning_rate=fast",
        "--config.flag=perhaps",
        "--config.width",
        "--config.list=[2]",
        "--config.sizes=(1, 2.5)",
        "--config.sizes=(1, two)",
        "--config.names=(a,b)",
        "--config.names=a,b",
        "--config.optim.learning_rate=1/2/3",
        "--config.radii=(0.0, eight)",
        "--config.radii=(0.0, 8/0)",
        "--config.optim.learning_rate=1/0",
        "--config.optim=3",
        "--config.optim={'learning_rat': 1.0}",
        "--config.rules=3",
        "--settings.width=3",
    ],
)
def test_a_value_of_the_wrong_type_is_one_line_naming_the_field(spec: str, override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(spec, [override])
    assert override.partition("=")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistyped_file_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'configs/guard.py'"):
        load_config("configs/gaurd.py:tiny")


@pytest.mark.parametrize("file", config_files())
def test_a_configuration_that_comes_with_the_package_is_found_from_anywhere(
    file: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(file) == repository / file
    for variant, described in describe_variants(file).items():
        assert described
        assert load_config(f"{file}:{variant}").is_locked


def test_the_working_folders_configuration_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "guard.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/guard.py") == Path("configs/guard.py")
    assert load_config("configs/guard.py:small").width == 8
    assert describe_variants("configs/guard.py") == {"small": "", "large": ""}
    assert "configs/guard.py" in config_files() and "configs/cmai.py" in config_files()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("def get_config(:", r"job\.py:1: not valid Python"),
        ("width = 3", "defines get_config"),
        ("def get_config(variant='a'):\n    return {}", "must return"),
    ],
)
def test_a_file_that_is_no_configuration_says_why(
    tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "job.py").write_text(text)
    with pytest.raises(UserError, match=complaint):
        load_config(str(tmp_path / "job.py"))
