"""Every variant of every configuration file loads, locked, and says what its name says."""

import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from crossguard_jax.core.config import load_config
from crossguard_jax.data.prompts import get_template

REPOSITORY = Path(__file__).resolve().parents[1]
VISION_LAYER = "vision_tower.layers.self_attn.q_proj"
LANGUAGE_LAYER = "language_model.layers.mlp.gate_proj"


def variants() -> list[str]:
    found = []
    for file in sorted(REPOSITORY.glob("configs/*.py")):
        namespace: dict[str, object] = {}
        exec(compile(file.read_text(), file, "exec"), namespace)  # the file stands by itself
        found += [f"configs/{file.name}:{name}" for name in namespace["VARIANTS"]]
    return found


def guard(variant: str) -> ConfigDict:
    return load_config(f"configs/guard.py:{variant}")


def weights(config: ConfigDict) -> dict[str, float]:
    return {name: source.weight for name, source in config.data.sources.items() if source.weight}


@pytest.mark.parametrize("spec", variants())
def test_every_variant_loads_and_is_locked(spec: str) -> None:
    config = load_config(spec)
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.no_such_field = 1


@pytest.mark.parametrize("spec", [spec for spec in variants() if "guard.py" in spec])
def test_every_guard_variant_has_the_same_fields_outside_its_sources(spec: str) -> None:
    def fields(config: ConfigDict) -> set[str]:
        names = set(config.keys())
        for name in ("model", "lora", "data", "optim", "train", "mesh"):
            names |= {f"{name}.{field}" for field in config[name]}
        return names

    config = load_config(spec)
    assert fields(config) == fields(guard("tiny"))
    assert get_template(config.data.prompt).name == config.data.prompt
    assert sum(weights(config).values()) > 0


def test_the_full_mixture_adds_up_to_one() -> None:
    for variant in ("tiny", "llava_7b"):
        assert sum(weights(guard(variant)).values()) == pytest.approx(1.0)


def test_explicit_only_has_neither_implicit_nor_benign_rows() -> None:
    assert set(weights(guard("explicit_only"))) == {
        "explicit_text",
        "explicit_picture",
        "typographic",
    }


def test_no_benign_leaves_out_benign_questions_and_safe_implicit_rows() -> None:
    config = guard("no_benign")
    assert "benign_vqa" not in weights(config)
    assert config.data.sources.implicit.labels == ("unsafe",)


@pytest.mark.parametrize(
    ("variant", "vision", "language"),
    [
        ("tiny", True, True),
        ("llava_7b", True, True),
        ("vision_lora", True, False),
        ("language_lora", False, True),
    ],
)
def test_adapters_sit_on_the_towers_the_variant_names(
    variant: str, vision: bool, language: bool
) -> None:
    targets = guard(variant).lora.targets
    assert bool(re.fullmatch(targets, VISION_LAYER)) is vision
    assert bool(re.fullmatch(targets, LANGUAGE_LAYER)) is language
    assert not re.fullmatch(targets, "multi_modal_projector.linear_1")
    assert not re.fullmatch(targets, "language_model.lm_head")


def test_variants_do_not_share_state() -> None:
    load_config("configs/guard.py:tiny", ["--config.data.sources.implicit.weight=0.75"])
    assert guard("tiny").data.sources.implicit.weight == 0.5
