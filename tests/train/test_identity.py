"""What decides a run's arithmetic is its identity; every field of every recipe is one or the other,
and a run is refused by the name of the field."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from crossguard_jax.cmai import recipe as cmai_recipe
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.guard import recipe as guard_recipe
from crossguard_jax.impforge.ppo import recipe as ppo_recipe
from crossguard_jax.train.checkpoint import Checkpoints
from crossguard_jax.train.identity import deciding

# The first name below the recipe that a field's path has to have to be refused; written out here,
# so that a field that is new is one or the other on purpose.
DECIDES = {
    "guard": {
        "model.dtype",
        *(f"lora.{name}" for name in ("rank", "alpha", "targets", "layers")),
        *(f"data.{name}" for name in ("prompt", "blank", "picture", "max_length", "buckets")),
        *(f"data.augment.{name}" for name in ("long", "injected", "max_length")),
        *(f"train.{name}" for name in ("steps", "batch_size", "loss", "labels_first", "seed")),
    },
    "cmai": {
        "model.dtype",
        *(f"task.{name}" for name in ("kind", "form", "labels", "most_common", "max_new_tokens")),
        *(f"lora.{name}" for name in ("rank", "alpha", "targets", "layers")),
        *(f"cmcv.{name}" for name in ("on", "kind", "shared_width", "hidden_width", "text_source")),
        *(f"cmcv.{name}" for name in ("weight", "joint", "adversarial", "pass_rate", "confidence")),
        *("cmcv.noise", "cmcv.train.steps", "cmcv.train.batch_size"),
        *(f"mbat.{name}" for name in ("on", "goal", "inner", "outer", "perturb", "alpha")),
        "mbat.evasion",
        *(f"mbat.{name}" for name in ("norm", "steps", "text_epsilon", "edits")),
        *("arm.alarm_rate", "arm.max_variance", "arm.follow"),
        *(
            f"arm.{knob}.{name}"
            for knob in ("beta", "epsilon", "lambda_")
            for name in ("start", "maximum", "step", "decay")
        ),
        *(f"data.{name}" for name in ("prompt", "blank", "picture", "max_length", "buckets")),
        *(f"data.augment.{name}" for name in ("long", "injected", "max_length")),
        *(f"train.{name}" for name in ("steps", "batch_size", "loss", "seed")),
    },
    "impforge": {
        *(f"rewriter.{name}" for name in ("dtype", "prompt", "chat", "prompt_length")),
        *(f"rewriter.{name}" for name in ("max_new_tokens", "temperature")),
        *(f"rewriter.lora.{name}" for name in ("rank", "alpha", "targets")),
        *(f"rewards.weights.{name}" for name in ("safety", "semantic", "overlap")),
        *(f"rewards.safety.{name}" for name in ("prompt", "answer", "safe", "unsafe")),
        *("rewards.safety.max_length", "rewards.semantic.kind", "rewards.semantic.join"),
        *("rewards.semantic.max_length", "rewards.overlap.tau", "rewards.dtype"),
        *(f"ppo.{name}" for name in ("iterations", "batch_size", "seed")),
        *(f"ppo.settings.{name}" for name in ("kl_coef", "kl_target", "kl_horizon", "gamma")),
        *(f"ppo.settings.{name}" for name in ("gae_lambda", "clip_policy", "clip_value")),
        *(f"ppo.settings.{name}" for name in ("value_coef", "epochs", "minibatches")),
        "ppo.settings.missing_end_penalty",
        *(f"breadth.{name}" for name in ("quota", "normalize_by_category", "novelty")),
        *(f"breadth.{name}" for name in ("crowd_limit", "crowd_cosine", "fluency_floor")),
        "breadth.archive_size",
    },
}


def leaves(config: Any, path: str = "") -> list[str]:
    """Dotted paths of a configuration's values."""
    if not isinstance(config, dict) or not config:
        return [path]
    return [leaf for k, v in config.items() for leaf in leaves(v, f"{path}.{k}".lstrip("."))]


def changed(config: ConfigDict, field: str) -> ConfigDict:
    """The configuration with another value of a field, of whatever type."""
    values = json.loads(config.to_json())
    inner, (*parts, last) = values, field.split(".")
    for part in parts:
        inner = inner[part]
    inner[last] = ["another", inner[last]]
    return ConfigDict(values)


@functools.cache
def values_of(recipe: str) -> str:
    return load_config(f"configs/{recipe}.py:tiny").to_json()


def config_of(recipe: str) -> ConfigDict:
    return ConfigDict(json.loads(values_of(recipe)))


@functools.cache
def decided(recipe: str) -> dict[str, Any]:
    return deciding(config_of(recipe))


FIELDS = [(recipe, field) for recipe in DECIDES for field in leaves(json.loads(values_of(recipe)))]


def refused(recipe: str, field: str) -> bool:
    """Whether a run does not go on with another value of the field."""
    weight = field.startswith("data.sources.") and field.endswith(".weight")
    optim = ".".join(field.split(".")[:-1]).endswith("optim")
    return weight or optim or field in DECIDES[recipe]


@pytest.mark.parametrize(("recipe", "field"), FIELDS, ids=[".".join(f) for f in FIELDS])
def test_every_field_goes_on_or_is_refused_by_its_name(recipe: str, field: str) -> None:
    before, after = decided(recipe), deciding(changed(config_of(recipe), field))
    differing = {name for name in before | after if before.get(name) != after.get(name)}
    assert differing == ({field} if refused(recipe, field) else set())


def test_every_field_that_decides_is_there() -> None:
    fields = {(recipe, field) for recipe, field in FIELDS}
    assert {(recipe, f) for recipe, those in DECIDES.items() for f in those} <= fields


def test_a_source_that_is_not_read_does_not_count() -> None:
    config = config_of("guard")
    before = deciding(config)
    config.data.sources.talk.weight = 0.0
    without = deciding(config)
    assert {n for n in before if n not in without} == {"data.sources.talk.weight"}
    del config.data.sources["talk"]
    assert deciding(config) == without


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """What hashes read of a model's folder."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def bare(kind: type, **attributes: Any) -> Any:
    """An object of a class of models that has no model."""
    made = object.__new__(kind)
    vars(made).update(attributes)
    return made


def identity_of(recipe: str, config: ConfigDict, base: Path, tmp_path: Path) -> dict[str, Any]:
    """The recipe's own identity, of a model and of rows as good as none."""
    if recipe == "impforge":
        rewards = bare(ppo_recipe.Rewards, hashes={"safety": "h"})
        return ppo_recipe.run_identity(
            config, bare(ppo_recipe.Rewriter, folder=base, rewards=rewards), []
        )
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    for name in (*config.data.sources, guard_recipe.TALK):
        (data / f"{name}.settings.json").write_text(json.dumps({"contents": "c"}))
    opened: dict[str, Any] = {name: [] for name in config.data.sources}
    if recipe == "guard":
        return guard_recipe.run_identity(config, base, opened, data)
    task = SimpleNamespace(folder=base, reader=None)
    return bare(cmai_recipe._Run, config=config, task=task, sources=opened, data=data).identity()


@pytest.mark.parametrize("recipe", DECIDES)
def test_each_recipe_goes_on_from_another_path_with_another_remat_and_other_saves(
    recipe: str, base: Path, tmp_path: Path
) -> None:
    before = config_of(recipe)
    saved = identity_of(recipe, before, base, tmp_path)
    run = "ppo" if recipe == "impforge" else "train"
    model = "rewriter" if recipe == "impforge" else "model"
    for field in (f"{model}.path", f"{model}.remat", f"{run}.save_every", "mesh.fsdp"):
        moved = base.rename(base.with_name(f"moved_{field}"))
        assert identity_of(recipe, changed(before, field), moved, tmp_path) == saved
        base = moved
    (base / "model.safetensors").write_bytes(b"others")
    assert identity_of(recipe, before, base, tmp_path)["base"] != saved["base"]


@pytest.mark.parametrize("recipe", DECIDES)
def test_a_run_that_is_another_is_refused_by_the_fields_name(
    recipe: str, base: Path, tmp_path: Path
) -> None:
    run = "ppo" if recipe == "impforge" else "train"
    saved = identity_of(recipe, config_of(recipe), base, tmp_path)
    checkpoints = Checkpoints(tmp_path / "run", saved)
    checkpoints.save(1, {"w": jnp.zeros(2)}, {}, {"best": {}})
    checkpoints.close()
    for field in (f"{run}.batch_size", f"{run}.seed", "optim.learning_rate"):
        other = identity_of(recipe, changed(config_of(recipe), field), base, tmp_path)
        with pytest.raises(UserError, match=rf"another run \(config\.{field}: .* -> "):
            Checkpoints(tmp_path / "run", other).restore({"w": jnp.zeros(2)})
