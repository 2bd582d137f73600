"""The recipe: who learns what, where it cuts, and that a kill changes nothing."""

import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.attacks.registry import REGISTRY
from crossguard_jax.cmai import recipe
from crossguard_jax.cmai.arm import KNOBS, Controller, Knob
from crossguard_jax.cmai.consistency import ConsistencyConfig
from crossguard_jax.cmai.kinds import answers_of, kind_of
from crossguard_jax.cmai.mbat import MbatSettings, perturbed
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.cmai.recipe import GOALS, immunize
from crossguard_jax.cmai.threshold import choose_threshold
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import digest, named_leaves
from crossguard_jax.evals.robustness.systems import configured
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.hf.load import load_model, resolve_folder
from crossguard_jax.nn import lora
from crossguard_jax.nn.verdict import LOSSES
from crossguard_jax.toy.study import SOURCE, read
from crossguard_jax.toy.world.sources import records
from crossguard_jax.train.loop import read_metrics
from crossguard_jax.train.optim import optimizer
from tests.cmai import immunize_run
from tests.cmai.immunize_run import SAVE_EVERY, STEPS, short
from tests.cmai.small_systems import base as ships
from tests.test_configs import clip_paths, layer_paths

PROGRAM = Path(immunize_run.__file__)
READERS = {SOURCE: read}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def steps():
    """By step of ``whole``'s MBAT: whether all of the state lay on the mesh, and ARM's state."""
    return []


@pytest.fixture(scope="module")
def whole(data, steps, tmp_path_factory):
    """A run that nothing disturbs, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    make = recipe.make_immunize_step

    def watched(*args, **options):
        step = make(*args, **options)

        def look(state, frozen, batch):
            committed = all(leaf.committed for leaf in jax.tree.leaves(state))
            steps.append((committed, jax.device_get(state.arm)))  # before it is donated
            return step(state, frozen, batch)

        return look

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "make_immunize_step", watched)
        return immunize(short(), folder, READERS, data), folder


@pytest.fixture(scope="module")
def base():
    return load_model(resolve_folder("toy://llava"), "float32")


def moved(system) -> bool:
    """Whether the adapter is no longer the fresh one, whose second factors are zero."""
    leaves = named_leaves(system.trainable["adapters"])
    second = [np.asarray(x[...]) for name, x in leaves if name.endswith(".b")]
    assert second
    return any(x.any() for x in second)


def held_out(system, length=48):
    """S_c of the held-out pairs, which the run is not asked for."""
    rows = records("implicit", "val", 28)
    x, arrays = system.rows(rows)
    return np.asarray(jax.jit(system.s_c)(system.params, arrays, jnp.asarray(x)))


@pytest.mark.training
def test_the_adapter_learns_and_the_base_and_the_reader_do_not(whole, base):
    system, _ = whole
    assert moved(system)
    assert digest(lora.detach(system.guard.model)) == digest(base)
    assert digest(system.frozen["reader"]) == digest(load_clip("toy://clip").model.text_model)


@pytest.mark.training
def test_mbats_first_step_compiles_for_all_since_its_state_is_placed(whole, steps):
    assert [committed for committed, _ in steps] == [True] * STEPS


@pytest.mark.training
def test_the_evasive_adversary_and_arm_are_told_what_clean_pairs_score(whole, steps):
    taus = np.array([(float(arm.tau), float(arm.tau_c)) for _, arm in steps])
    assert (0.0 != taus[:, 0]).all() and (taus[:, 0] < taus[:, 1]).all()
    # At first what most of the held-out ones are above, and what all are below; then what the
    # training rows' own say.
    followed = [np.asarray(arm.clean.thresholds) for _, arm in steps]
    np.testing.assert_allclose(taus, followed, atol=1e-6)
    assert np.ptp(taus, axis=0).max() > 0
    assert {arm.clean.recent.shape for _, arm in steps} == {(recipe.RECENT,)}


@pytest.mark.training
def test_the_policy_cuts_where_the_held_out_scores_say(whole):
    system, _ = whole
    scores = held_out(system)
    chosen = choose_threshold(scores, 0.8, 0.9)
    reject, smooth, accept = system.policy.branches
    assert (reject.do, smooth.do, smooth.n, accept.do) == ("reject", "smooth", 2, "accept")
    assert reject.below == system.threshold.tau == pytest.approx(chosen.tau, abs=1e-4)
    assert smooth.below == pytest.approx(choose_threshold(scores, 0.5, 0.9).tau, abs=1e-4)
    # Rows without a picture are no pairs, and are not counted.
    assert system.threshold.n == 28


@pytest.mark.training
def test_arm_hardens_while_it_takes_alarm(whole):
    _, folder = whole
    config = short()
    (line,) = read_metrics(folder / "mbat")
    assert line["step"] == STEPS
    for name, knob in (("beta", config.arm.beta), ("epsilon", config.arm.epsilon)):
        expected = min(knob.start + (STEPS - 1) * knob.step, knob.maximum)
        assert line[name] == pytest.approx(expected, rel=1e-5)
    assert {"info_nce", "ranked", "lowered", "adversarial_s_c", "clean_loss"} <= set(line)


@pytest.mark.training
def test_another_attack_later_needs_no_other_training(whole, data):
    system, folder = whole
    config = short()
    config.attack.epsilons = (0.0, 1.0)
    again = immunize(config, folder, READERS, data)
    for part in ("adapters", "check"):
        assert digest(again.trainable[part]) == digest(system.trainable[part]), part


@pytest.mark.training
def test_a_run_killed_amid_mbat_ends_bit_for_bit_as_one_that_was_not(
    whole, data, tmp_path, repository, monkeypatch
):
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), str(data), str(STEPS)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert not (tmp_path / "mbat" / "metrics.jsonl").read_bytes()
    calls = []
    monkeypatch.setattr(recipe, "make_immunize_step", recipe.make_immunize_step)
    immunize_run.watch(lambda: calls.append(None))
    again = immunize(short(), tmp_path, READERS, data)
    assert len(calls) in (STEPS - SAVE_EVERY, STEPS - 2 * SAVE_EVERY), "it went on, not anew"
    system, folder = whole
    for part in ("adapters", "check"):
        assert digest(again.trainable[part]) == digest(system.trainable[part]), part
    for stage in ("check", "mbat"):
        lines = [(f / stage / "metrics.jsonl").read_bytes() for f in (tmp_path, folder)]
        assert lines[0] == lines[1], stage
    assert (again.policy, again.threshold) == (system.policy, system.threshold)


def test_the_check_alone_learns_and_leaves_the_model_as_it_is(data, tmp_path):
    config = short("cmcv")
    config.cmcv.train.update({"steps": 40, "save_every": 40})
    system = immunize(config, tmp_path, READERS, data)
    assert not moved(system) and not (tmp_path / "mbat").exists()
    lines = read_metrics(tmp_path / "check")
    assert lines[-1]["info_nce"] < 0.9 * lines[0]["info_nce"]
    assert [branch.do for branch in system.policy.branches] == ["reject", "accept"]
    assert system.policy.branches[0].below == system.threshold.tau


@pytest.mark.training
def test_edited_texts_are_learned_from_and_the_check_reads_them(data, tmp_path):
    config = short(steps=2)
    config.mbat.update({"perturb": "edits", "steps": 2})
    system = immunize(config, tmp_path, READERS, data)
    assert moved(system)
    (line,) = read_metrics(tmp_path / "mbat")
    assert line["adversarial_loss"] > line["clean_loss"]
    assert line["adversarial_s_c"] != line["clean_s_c"], "the text that S_c sees is edited, too"


@pytest.mark.training
def test_mbat_alone_has_nothing_that_checks(data, tmp_path, base):
    config = short("mbat", steps=2)
    config.arm.follow = False
    system = immunize(config, tmp_path, READERS, data)
    assert moved(system) and digest(lora.detach(system.guard.model)) == digest(base)
    assert set(system.trainable) == {"adapters"} and set(system.frozen) == {"model"}
    assert system.policy == Policy() and system.threshold is None
    assert not (tmp_path / "check").exists()
    (line,) = read_metrics(tmp_path / "mbat")
    assert line["clean_s_c"] == line["adversarial_s_c"] == 1.0
    hardest = config.arm.epsilon.maximum, config.arm.lambda_.maximum
    assert (line["epsilon"], line["lambda"]) == pytest.approx(hardest)


class _ReachedError(Exception):
    """What a stage would have been made of."""


@pytest.mark.parametrize("loss", LOSSES)
def test_only_what_is_learned_from_goes_through_the_whole_head(loss, data, tmp_path, monkeypatch):
    def reached(*args):
        raise _ReachedError(*args)

    monkeypatch.setattr(recipe, "make_immunize_step", reached)
    config = short("mbat")
    config.train.loss = loss
    with pytest.raises(_ReachedError) as made:
        immunize(config, tmp_path, READERS, data)
    answer, settings, *_, outer, _, _ = made.value.args
    task = outer.func.__self__
    batch = {k: jnp.asarray(x) for k, x in task.batch(records("implicit", "val", 2), 48).items()}
    trainable, frozen = {"adapters": task.adapters}, task.frozen_parts
    clean = (batch["pixels"], jnp.zeros((*batch["text_mask"].shape, task.width)))
    arm = Controller(0.0, *(Knob(0.1, 0.1),) * 3).start()

    def attack(trainable, frozen, batch):
        return perturbed(answer, settings, trainable, frozen, batch, clean, KEY, arm)

    def learn(trainable, frozen, batch):
        return outer(trainable, frozen, batch, clean)

    def whole_heads(function):
        """Matrix products as wide as the vocabulary."""
        program = str(jax.make_jaxpr(function)(trainable, frozen, batch))
        width = task.guard.model.config.text.vocab_size
        return len(re.findall(rf":f32\[(?:\d+,)*{width}\] = dot_general", program))

    assert whole_heads(attack) == 0
    assert whole_heads(learn) == (loss == "vocabulary")


@pytest.mark.training
def test_fare_brings_attacked_features_back_to_the_bases(data, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "Schedule", functools.partial(recipe.Schedule, log_every=1))
    config = short("fare", steps=20)
    config.optim.learning_rate = 1e-2
    system = immunize(config, tmp_path, READERS, data)
    # Of 8 rows each, so that one step says little.
    losses = [line["adversarial_loss"] for line in read_metrics(tmp_path / "mbat")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2])
    paths = [name for name, _ in named_leaves(system.trainable["adapters"])]
    assert {path.split(".")[0] for path in paths} == {"vision_tower"}


def test_what_cannot_be_is_refused_by_its_field(data, tmp_path):
    config = short(steps=1)
    config.mbat.goal = "peace"
    config.cmcv.on = False
    with pytest.raises(UserError, match="mbat.goal 'peace' is none of answers, features"):
        immunize(config, tmp_path, READERS, data)
    config = short(steps=1)
    config.mbat.update({"goal": "features", "perturb": "edits"})
    with pytest.raises(UserError, match="mbat.perturb 'edits': no text moves"):
        immunize(config, tmp_path, READERS, data)
    config.mbat.update({"perturb": "picture", "outer": "trades"})
    with pytest.raises(UserError, match="mbat.outer 'trades': mbat.goal 'features' gives no"):
        immunize(config, tmp_path, READERS, data)
    config = short(steps=1)
    config.train.loss = "hinge"
    with pytest.raises(UserError, match="train.loss 'hinge' is none of vocabulary, labels"):
        immunize(config, tmp_path, READERS, data)
    config = short()
    config.task.most_common = 5
    rows = {"text": [r for r in records("text_safety", "val", 8) if r.label == "safe"]}
    with pytest.raises(UserError, match="data.sources: 1 kind of label"):
        answers_of(config, rows)


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        ({"pass_rat": 0.9, "do": "reject"}, "pass_rat"),
        ({"pass_rate": 90, "do": "reject"}, "pass_rate 90: a share"),
        ({"pass_rate": "x", "do": "reject"}, "pass_rate 'x': a share"),
        ({"pass_rate": 0.9}, "do None"),
        ({"do": "reject"}, "below"),
        ({"pass_rate": 0.9, "do": "smooth", "n": 0}, "smooth: n from 1"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_before_anything_is_trained(
    branch, message, tmp_path, monkeypatch
):
    config = short(steps=1)
    config.arm.branches = (branch,)
    monkeypatch.setattr(recipe, "open_sources", lambda *_: pytest.fail("began"))
    with pytest.raises(UserError, match=message):
        immunize(config, tmp_path, READERS, tmp_path)


def test_the_answers_are_the_most_common_labels_of_the_training_rows():
    rows = {"vqa": records("vqa_closed", "train", 60), "text": records("text_safety", "val", 2)}
    config = short()
    assert answers_of(config, rows) == ()
    config.task.most_common = 3
    found = answers_of(config, rows)
    labels = [r.label for source in rows.values() for r in source]
    counts = {label: labels.count(label) for label in labels}
    assert len(found) == 3 and [counts[x] for x in found] == sorted(counts.values())[:-4:-1]


# The configurations


def variants():
    namespace = {}
    exec(Path("configs/cmai.py").read_text(), namespace)  # the file stands by itself
    return list(namespace["VARIANTS"])


@pytest.mark.parametrize("variant", variants())
def test_every_variant_is_one_that_the_recipe_takes(variant):
    config = load_config(f"configs/cmai.py:{variant}")
    knobs = {name: config.arm[name] for name in ("max_variance", *KNOBS)}
    controller = Controller.from_config(knobs | {"tau_c": 0.0})
    mbat = {k: v for k, v in config.mbat.items() if k not in ("on", "goal")}
    assert MbatSettings(**mbat).steps > 0 and config.mbat.goal in GOALS
    cuts = np.linspace(0.0, 1.0, 2_000)
    policy = Policy.from_config({"branches": recipe._cut(config, cuts)})
    assert config.cmcv.on == (len(policy.branches) > 1)
    assert config.mbat.on or config.cmcv.on
    widths = {k: config.cmcv[k] for k in ("kind", "text_source", "shared_width", "hidden_width")}
    ConsistencyConfig(8, 8, **widths)
    optimizer(config.optim, config.train.steps)
    optimizer(config.cmcv.optim, config.cmcv.train.steps)
    kind_of(config)
    paths = clip_paths() if config.task.kind == "retrieval" else layer_paths()
    assert [p for p in paths if re.fullmatch(config.lora.targets, p)]
    for name, attack in configured(config.attack).items():
        own = REGISTRY[name]
        assert (attack.search, attack.climb, attack.transfer) == (
            *(own.search, own.climb, own.transfer),
        ), "a name means the same here as in the registry"
    assert config.attack.convergence.epsilon in config.attack.epsilons
    fixed = all(k.start == k.maximum for k in (controller.epsilon, controller.lambda_))
    name = re.sub("^(vqa|captions|retrieval|llava_7b)_", "", variant)
    assert fixed == (name in ("mbat", "cmcv_mbat", "pgd_at", "fare", "e2at"))
    assert config.mbat.inner == (name if name in ("seed", "evasive") else "both")
    assert (config.task.most_common > 0) == variant.startswith("vqa_")


def test_vqas_answers_fit_into_the_variants_room_and_begin_with_tokens_of_their_own():
    labels = {r.label for r in records("vqa_closed", "train", 600)}
    assert len(labels) <= load_config("configs/cmai.py:vqa_tiny").task.most_common
    assert len(set(ships().encoder.first_tokens(sorted(labels)))) == len(labels)
