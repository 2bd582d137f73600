"""Every variant of every configuration file loads, locked, and says what its name says."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from crossguard_jax.cmai.recipe import immunize
from crossguard_jax.core.config import config_files, describe_variants, load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import get_template
from crossguard_jax.guard.recipe import train_guard
from crossguard_jax.impforge.commands import forge_files, match_files
from crossguard_jax.impforge.ppo.recipe import train_rewriter
from crossguard_jax.nn.clip import VisionConfig
from crossguard_jax.nn.llama import LlamaConfig
from crossguard_jax.nn.llava import Llava, LlavaConfig
from crossguard_jax.nn.lora import dense_layers

REPOSITORY = Path(__file__).resolve().parents[1]


def layer_paths() -> list[str]:
    text = LlamaConfig(32, 8, 8, 2, 2, 2, 4)
    config = LlavaConfig(vision=VisionConfig(8, 8, 2, 2, image_size=8, patch_size=4), text=text)
    model = jax.eval_shape(lambda: Llava(config, jax.random.key(0)))
    return [path for path, _ in dense_layers(model)]


def variants() -> list[str]:
    found = []
    for file in sorted(REPOSITORY.glob("configs/*.py")):
        namespace: dict[str, object] = {}
        exec(compile(file.read_text(), file, "exec"), namespace)  # the file stands by itself
        found += [f"configs/{file.name}:{name}" for name in namespace["VARIANTS"]]
    return found


@pytest.mark.parametrize("file", config_files())
def test_no_variant_is_taken_unasked(file: str) -> None:
    with pytest.raises(UserError, match="name a variant"):
        load_config(file)


def guard(variant: str) -> ConfigDict:
    return load_config(f"configs/guard.py:{variant}")


def weights(config: ConfigDict) -> dict[str, float]:
    return {name: source.weight for name, source in config.data.sources.items() if source.weight}


@pytest.mark.parametrize("spec", variants())
def test_every_variant_loads_and_is_locked(spec: str) -> None:
    file, _, variant = spec.partition(":")
    assert describe_variants(file)[variant], "its docstring says what it is"
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


def test_explicit_only_leaves_out_the_implicit_rows_alone() -> None:
    assert set(weights(guard("tiny"))) - set(weights(guard("explicit_only"))) == {"implicit"}


def test_no_benign_leaves_out_every_safe_row() -> None:
    config = guard("no_benign")
    assert "benign_vqa" not in weights(config)
    assert all(config.data.sources[name].labels == ("unsafe",) for name in weights(config))


@pytest.mark.parametrize(
    ("variant", "towers"),
    [
        ("tiny", {"vision_tower", "language_model"}),
        ("llava_7b", {"vision_tower", "language_model"}),
        ("vision_lora", {"vision_tower"}),
        ("language_lora", {"language_model"}),
    ],
)
def test_adapters_sit_on_the_towers_the_variant_names(variant: str, towers: set[str]) -> None:
    targets = guard(variant).lora.targets
    matched = [path for path in layer_paths() if re.fullmatch(targets, path)]
    assert {path.split(".")[0] for path in matched} == towers
    assert len(matched) == 4 * ("vision_tower" in towers) + 7 * ("language_model" in towers)


START: dict[str, Callable[[ConfigDict, Path], object]] = {
    "guard": train_guard,
    "cmai": immunize,
    "impforge": lambda config, folder: train_rewriter(config, [], folder),
    "forge": lambda config, folder: forge_files(config, "", folder),
    "match": lambda config, folder: match_files(config, "", "", folder),
}
COUNTS = {
    "guard": ["train.steps", "train.batch_size", "train.save_every", "lora.rank"]
    + ["optim.accumulate", "data.max_length"],
    "cmai": ["train.steps", "train.batch_size", "train.save_every", "lora.rank"]
    + [f"cmcv.train.{name}" for name in ("steps", "batch_size", "save_every")]
    + ["cmcv.shared_width", "cmcv.hidden_width", "data.max_length"],
    "impforge": ["ppo.iterations", "ppo.batch_size", "ppo.save_every", "ppo.settings.epochs"]
    + ["ppo.settings.minibatches", "rewriter.lora.rank", "rewriter.prompt_length"]
    + ["rewriter.max_new_tokens", "breadth.archive_size"],
    "forge": ["forge.samples", "forge.keep"],
    "match": ["match.settings.batch_size", "match.judge.batch_size"],
}


@pytest.mark.parametrize(
    ("recipe", "field"), [(recipe, field) for recipe in COUNTS for field in COUNTS[recipe]]
)
@pytest.mark.parametrize("value", [0, -1])
def test_a_recipe_names_a_count_below_one_before_it_does_anything(
    recipe: str, field: str, value: int, tmp_path: Path
) -> None:
    file = {"forge": "impforge", "match": "impforge"}.get(recipe, recipe)
    config = load_config(f"configs/{file}.py:tiny", [f"--config.{field}={value}"])
    with pytest.raises(UserError, match=f"^{field} {value}: give a whole number above 0"):
        START[recipe](config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_variants_do_not_share_state() -> None:
    before = guard("tiny").to_json()
    load_config("configs/guard.py:tiny", ["--config.data.sources.implicit.weight=0.75"])
    assert guard("tiny").to_json() == before
