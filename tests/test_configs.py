"""Every variant of every configuration file loads, locked, and says what its name says."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from crossguard_jax.cmai import recipe as cmai_recipe
from crossguard_jax.cmai.recipe import immunize
from crossguard_jax.core.config import config_files, describe_variants, load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import MESH_AXES, even_parts, make_mesh
from crossguard_jax.data.prompts import get_template
from crossguard_jax.data.records import Record
from crossguard_jax.guard import recipe as guard_recipe
from crossguard_jax.guard.mixture import open_sources
from crossguard_jax.guard.recipe import train_guard
from crossguard_jax.impforge.commands import forge_files, match_files
from crossguard_jax.impforge.ppo import recipe as ppo_recipe
from crossguard_jax.impforge.ppo.recipe import train_rewriter
from crossguard_jax.nn.clip import Clip, ClipConfig, TextConfig, VisionConfig
from crossguard_jax.nn.llama import LlamaConfig
from crossguard_jax.nn.llava import Llava, LlavaConfig
from crossguard_jax.nn.lora import dense_layers
from crossguard_jax.systems.load import identified
from tests import published

REPOSITORY = Path(__file__).resolve().parents[1]


def clip_paths() -> list[str]:
    towers = VisionConfig(8, 8, 2, 2, image_size=8, patch_size=4), TextConfig(8, 8, 2, 2)
    model = jax.eval_shape(lambda: Clip(ClipConfig(*towers, 8), jax.random.key(0)))
    return [path for path, _ in dense_layers(model)]


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


@pytest.mark.parametrize("scale", ["", "llava_7b_"])
def test_explicit_only_leaves_out_the_implicit_rows_alone(scale: str) -> None:
    base = guard(scale.rstrip("_") or "tiny")
    implicit = {name for name in weights(base) if name in TRUTH}
    assert "implicit" in implicit
    assert set(weights(base)) - set(weights(guard(f"{scale}explicit_only"))) == implicit


@pytest.mark.parametrize("variant", ["forged", "refuses_explicit"])
def test_who_is_not_to_know_the_worlds_truth_reads_nothing_of_it(variant: str) -> None:
    readers = {name: spec.reader for name, spec in guard(variant).data.sources.items()}
    assert {name for name in readers if name in TRUTH and readers[name] == "toy"} == set()
    cmai = load_config("configs/cmai.py:forged").data.sources
    assert {name for name in cmai if name in TRUTH and cmai[name].reader == "toy"} == set()


@pytest.mark.parametrize("scale", ["", "llava_7b_"])
def test_no_benign_leaves_out_every_safe_row(scale: str) -> None:
    config = guard(f"{scale}no_benign")
    assert not {"benign_vqa", "vqav2", "talk"} & set(weights(config))
    assert all(config.data.sources[name].labels == ("unsafe",) for name in weights(config))


# ---- A scale and its ablations -----------------------------------------------------------------


def flat(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """Every field by its dotted path."""
    fields: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def differing(one: str, other: str) -> set[str]:
    """The fields in which two configurations differ."""
    a, b = flat(load_config(one)), flat(load_config(other))
    return {key for key in a | b if (key in a, a.get(key)) != (key in b, b.get(key))}


BENIGN = ("benign_vqa", "vqav2", "talk")
TRUTH = ("implicit", "implicit_wide", "two_pictures")


def labels(scale: ConfigDict) -> set[str]:
    return {f"data.sources.{name}.labels" for name in scale.data.sources}


SCALES = {
    "guard": {"tiny": "", "llava_7b": "llava_7b_"},
    "cmai": {
        "tiny": "",
        "vqa_tiny": "vqa_",
        "captions_tiny": "captions_",
        "retrieval_tiny": "retrieval_",
        "llava_7b": "llava_7b_",
    },
    "impforge": {"tiny": "", "llama_7b": "llama_7b_"},
}
FIXED = {f"arm.{knob}.start" for knob in ("beta", "epsilon", "lambda_")}
MBAT = FIXED | {"cmcv.on", "arm.branches"}
DARING = {"rewriter.temperature", "ppo.iterations", "ppo.settings.kl_coef", "optim.learning_rate"}
UNLEASHED = {"ppo.settings.kl_coef", "optim.learning_rate"}


def without(*rewards: str) -> set[str]:
    return {f"rewards.weights.{reward}" for reward in rewards}


ABLATIONS: dict[str, dict[str, set[str]]] = {
    "guard": {
        "explicit_only": {f"data.sources.{name}.weight" for name in TRUTH},
        "no_benign": {f"data.sources.{name}.weight" for name in BENIGN} | {"LABELS"},
        "no_augment": {"data.augment.long", "data.augment.injected"},
        "vision_lora": {"lora.targets"},
        "language_lora": {"lora.targets"},
        "other_loss": {"train.loss"},
        "crop": {"data.picture"},
    },
    "cmai": {
        "cmcv": {"mbat.on", "arm.branches"},
        "mbat": MBAT,
        "cmcv_mbat": FIXED | {"arm.branches"},
        "seed": {"mbat.inner"},
        "evasive": {"mbat.inner"},
        "clean_check": {"cmcv.adversarial"},
        "noisy_check": {"cmcv.noise"},
        "other_loss": {"train.loss"},
        "pgd_at": MBAT | {"lora.targets"},
        "fare": MBAT | {"lora.targets", "mbat.goal", "arm.lambda_.maximum"},
        "e2at": MBAT | {"lora.targets", "mbat.perturb", "mbat.text_epsilon"},
    },
    "impforge": {
        "no_gate": {"gate.kind"},
        "no_safety": without("safety"),
        "no_semantic": without("semantic"),
        "no_overlap": without("overlap"),
        "daring": DARING,
        "daring_no_semantic": DARING | without("semantic"),
        "daring_no_safety": DARING | without("safety"),
        "daring_no_safety_no_overlap": DARING | without("safety", "overlap"),
        "unleashed": UNLEASHED,
        "unleashed_no_semantic": UNLEASHED | without("semantic"),
    },
}
BREADTH = {"breadth.quota", "breadth.normalize_by_category"}
# They reject and do nothing else in the first place, and have no list of answers.
RESPONDING: dict[str, set[str] | None] = {
    "cmcv": {"mbat.on"},
    "cmcv_mbat": FIXED,
    "other_loss": None,
}
ONLY_OF: dict[tuple[str, str], dict[str, set[str] | None]] = {
    ("cmai", "captions_tiny"): RESPONDING,
    ("cmai", "retrieval_tiny"): RESPONDING,
    ("guard", "tiny"): {"at_once": {"train.labels_first"}},
    ("impforge", "tiny"): {"plain": BREADTH},
    ("impforge", "llama_7b"): {"broad": BREADTH},
}
"""What is an ablation of one scale is the other scale itself; None is none of this scale."""


def ablations(file: str, scale: str) -> dict[str, set[str]]:
    """Each with the fields that it changes."""
    every = ABLATIONS[file] | ONLY_OF.get((file, scale), {})
    return {name: fields for name, fields in every.items() if fields is not None}


@pytest.mark.parametrize(
    ("file", "scale"), [(file, scale) for file, scales in SCALES.items() for scale in scales]
)
def test_an_ablation_differs_from_its_scale_in_exactly_these_fields(file: str, scale: str) -> None:
    base = load_config(f"configs/{file}.py:{scale}")
    for name, fields in ablations(file, scale).items():
        wanted = set(fields)
        if "LABELS" in wanted:
            wanted = (wanted - {"LABELS"}) | labels(base)
        wanted = {path for path in wanted if "sources" not in path or path in flat(base)}
        variant = f"configs/{file}.py:{SCALES[file][scale]}{name}"
        assert differing(f"configs/{file}.py:{scale}", variant) == wanted, variant


def test_every_variant_is_a_scale_with_an_ablation_or_named_here() -> None:
    """A new variant has to say here what it changes."""
    of_their_own = {
        "guard": {"forged", "nlvr", "refuses_explicit", "tiny_long"},
        "cmai": {"forged", "nlvr", "tiny_long"},
        "impforge": {"instruct"},
    }
    for file, scales in SCALES.items():
        names = {*scales, *of_their_own[file]}
        for scale, prefix in scales.items():
            names |= {f"{prefix}{name}" for name in ablations(file, scale)}
        assert set(describe_variants(f"configs/{file}.py")) == names


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("guard", {"train.steps", "train.eval_every", "train.save_every"}),
        ("cmai", {"train.steps", "train.batch_size", "train.save_every"}),
    ],
)
def test_a_long_training_differs_in_its_length_alone(file: str, fields: set[str]) -> None:
    assert differing(f"configs/{file}.py:tiny", f"configs/{file}.py:tiny_long") == fields


# ---- What a real configuration means -----------------------------------------------------------


def rows_of(spec: ConfigDict, root: Path) -> list[Record]:
    source = open_sources(ConfigDict({"rows": spec}), root / "datasets", {})["rows"]
    return [source[i] for i in range(len(source))]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data that the real configurations name, in the layout of its downloads."""
    root = tmp_path_factory.mktemp("downloads")
    for name in ("VLGuard", "FigStep", "VQAv2"):
        published.DATA[name](root / "data" / name)
    rows = [
        {"id": str(n), "image": None, "text": f"row {n}", "label": ("safe", "unsafe")[n % 2]}
        for n in range(80)
    ]
    table = root / "data" / "impforge" / "train.jsonl"
    table.parent.mkdir()
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


REAL = ["guard.py:llava_7b", "cmai.py:llava_7b"]


@pytest.mark.parametrize("name", REAL)
def test_what_a_7b_is_validated_on_has_both_labels_and_none_of_its_training_rows(
    name: str, downloads: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(downloads)
    config = load_config(str(REPOSITORY / "configs" / name))
    sources, validation = (
        {n: rows_of(spec, tmp_path / part / n) for n, spec in config.data[part].items()}
        for part in ("sources", "validation")
    )
    known = {r.id for rows in sources.values() for r in rows}
    held = {r.id for rows in validation.values() for r in rows}
    assert held and not held & known
    labelled = {n: {r.label for r in rows} for n, rows in (sources | validation).items()}
    assert labelled.pop("vqav2") == {"safe"}
    assert set(labelled) == {"implicit", "vlguard", "figstep"}
    assert all(each == {"safe", "unsafe"} for each in labelled.values())
    assert set(validation) >= {"implicit", "vlguard", "vqav2"}
    # Alone, no source's text says what its rows are.
    for rows in (sources["figstep"], validation.get("figstep", sources["figstep"])):
        assert {(r.text, r.label) for r in rows} == {
            (rows[0].text, "safe"),
            (rows[0].text, "unsafe"),
        }
    for specs in (config.data.sources, config.data.validation):
        assert all("test" not in spec.split for spec in specs.values()), "tests are for the test"


def test_a_7b_guard_is_selected_by_loss_and_a_small_one_by_its_auroc() -> None:
    for name in describe_variants("configs/guard.py"):
        config = guard(name)
        by = "-loss" if name.startswith("llava_7b") else "auroc" if config.data.validation else ""
        assert config.train.keep_best == by


@pytest.mark.parametrize("file", ["guard", "cmai"])
def test_what_is_trained_answers_by_itself_but_where_that_is_the_ablation(file: str) -> None:
    for name in describe_variants(f"configs/{file}.py"):
        loss = load_config(f"configs/{file}.py:{name}").train.loss
        assert loss == ("labels" if name.endswith("other_loss") else "vocabulary"), name


@pytest.mark.parametrize("file", ["guard", "cmai"])
def test_no_row_is_made_longer_where_more_words_would_make_another_question(file: str) -> None:
    for name in describe_variants(f"configs/{file}.py"):
        shares = load_config(f"configs/{file}.py:{name}").data.augment
        others = ("nlvr", "vqa", "captions", "retrieval")
        other_task = name.startswith(others) or name.endswith("no_augment")
        assert (shares.long == shares.injected == 0) == other_task, name


def test_the_7b_forge_is_the_papers() -> None:
    config = load_config("configs/impforge.py:llama_7b")
    assert set(config.rewards.weights.values()) == {1.0}
    assert config.rewards.overlap.tau == 0.2
    breadth = config.breadth
    assert not (breadth.quota or breadth.normalize_by_category or breadth.novelty)
    assert not breadth.crowd_limit and breadth.fluency_floor == float("-inf")
    assert config.ppo.settings.kl_coef > 0


def test_a_7b_is_immunized_from_what_a_7b_guards_export_leaves() -> None:
    config = load_config("configs/cmai.py:llava_7b")
    guard_config = guard("llava_7b")
    assert config.model.dtype == guard_config.model.dtype == "bfloat16"
    assert f"--out {config.model.path}" in (REPOSITORY / "README.md").read_text()
    assert config.data.prompt == config.data.picture == "", "as the guard's folder says"
    assert config.data.max_length == guard_config.data.max_length
    for name, spec in config.data.validation.items():
        assert spec.tenth == guard_config.data.validation[name].tenth


# ---- Adapters and counts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "towers"),
    [
        ("tiny", {"vision_tower", "language_model"}),
        ("llava_7b", {"vision_tower", "language_model"}),
        ("vision_lora", {"vision_tower"}),
        ("language_lora", {"language_model"}),
        ("llava_7b_vision_lora", {"vision_tower"}),
        ("llava_7b_language_lora", {"language_model"}),
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
    "forge": lambda config, folder: forge_files(config, "", folder, load_system=identified),
    "match": lambda config, folder: match_files(config, "", "", folder, load_system=identified),
}
COUNTS = {
    "guard": ["train.steps", "train.batch_size", "train.save_every", "lora.rank"]
    + ["optim.accumulate", "data.max_length"],
    "cmai": ["train.steps", "train.batch_size", "train.save_every", "lora.rank"]
    + [f"cmcv.train.{name}" for name in ("steps", "batch_size", "save_every")]
    + ["cmcv.shared_width", "cmcv.hidden_width", "data.max_length"]
    + ["optim.accumulate", "cmcv.optim.accumulate"],
    "impforge": ["ppo.iterations", "ppo.batch_size", "ppo.save_every", "ppo.settings.epochs"]
    + ["ppo.settings.minibatches", "rewriter.lora.rank", "rewriter.prompt_length"]
    + ["rewriter.max_new_tokens", "breadth.archive_size", "optim.accumulate"],
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


@pytest.mark.parametrize(
    ("recipe", "field", "of"),
    [
        ("guard", "optim.accumulate", "train.batch_size of 40"),
        ("cmai", "optim.accumulate", "train.batch_size of 16"),
        ("cmai", "cmcv.optim.accumulate", "cmcv.train.batch_size of 64"),
        ("impforge", "optim.accumulate", "the minibatch of 16"),
    ],
)
def test_microbatches_that_do_not_divide_are_refused_before_anything_is_done(
    recipe: str, field: str, of: str, tmp_path: Path
) -> None:
    config = load_config(f"configs/{recipe}.py:tiny", [f"--config.{field}=3"])
    with pytest.raises(UserError, match=f"^{field} 3 does not divide {of}; "):
        START[recipe](config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_base_that_cannot_be_merged_is_not_immunized(tmp_path: Path) -> None:
    config = load_config("configs/cmai.py:tiny", ["--config.model.dtype=int8"])
    with pytest.raises(UserError, match="^model.dtype 'int8': .*give float32 or bfloat16"):
        immunize(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["guard", "cmai", "impforge"])
def test_every_variant_takes_microbatches_that_divide(recipe: str) -> None:
    for variant in describe_variants(f"configs/{recipe}.py"):
        config = load_config(f"configs/{recipe}.py:{variant}")
        rows = {"optim": config.train.batch_size} if "train" in config else {}
        if "cmcv" in config:
            assert config.cmcv.train.batch_size % config.cmcv.optim.accumulate == 0, variant
        if "ppo" in config:
            rows = {"optim": config.ppo.batch_size // config.ppo.settings.minibatches}
        assert rows["optim"] % config.optim.accumulate == 0, variant
        if "7b" in variant:  # where a step in one piece does not fit one chip
            assert config.optim.accumulate > 1, variant
            for chips in (1, 8, 16):  # the slices that pages and launchers' examples name
                mesh = AbstractMesh((1, chips, 1), MESH_AXES)
                assert even_parts(variant, rows["optim"], config.optim.accumulate, mesh) >= 1


@pytest.mark.parametrize(
    ("recipe", "run", "complaint"),
    [
        ("guard", lambda config, out: train_guard(config, out), "train.batch_size: 40 rows"),
        ("cmai", lambda config, out: immunize(config, out), "train.batch_size: 16 rows"),
        ("impforge", lambda config, out: train_rewriter(config, [], out), "the minibatch: 16 rows"),
    ],
)
def test_rows_that_every_device_would_compute_are_refused_before_anything_is_made(
    recipe: str,
    run: Callable[[ConfigDict, Path], object],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mesh = make_mesh(1, 24, 1, jax.devices()[:1] * 24)
    for module in (guard_recipe, cmai_recipe, ppo_recipe):
        monkeypatch.setattr(module, "make_mesh", lambda **_: mesh)
    with pytest.raises(UserError, match=f"^{complaint} do not divide over the 24 devices"):
        run(load_config(f"configs/{recipe}.py:tiny"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weight", ["-1.0", "nan", "inf"])
def test_a_rewards_weight_that_is_none_is_refused(weight: str, tmp_path: Path) -> None:
    override = [f"--config.rewards.weights.safety={weight}"]
    with pytest.raises(UserError, match="^rewards.weights.safety .*: give a number of 0 or more"):
        train_rewriter(load_config("configs/impforge.py:tiny", override), [], tmp_path / "run")


def test_variants_do_not_share_state() -> None:
    before = guard("tiny").to_json()
    load_config("configs/guard.py:tiny", ["--config.data.sources.implicit.weight=0.75"])
    assert guard("tiny").to_json() == before
