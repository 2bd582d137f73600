"""What is compiled is what the verbs run: their functions, on arrays like theirs."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from crossguard_jax.cmai.edits import edited_rows
from crossguard_jax.cmai.reader import Reader
from crossguard_jax.cmai.task import Task
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, make_mesh
from crossguard_jax.data.records import Record
from crossguard_jax.guard.guard import Guard
from crossguard_jax.impforge.ppo.recipe import first_state, load_rewriter
from crossguard_jax.plan.jobs import Job
from crossguard_jax.plan.programs import KINDS, kinds_of, programs_of
from crossguard_jax.toy.world.scenes import to_png
from crossguard_jax.toy.world.sources import examples
from crossguard_jax.train.optim import optimizer
from tests.cmai.small_systems import check_for
from tests.impforge.ppo.test_rewriter import world

SPECS = {
    "sft": "configs/guard.py:tiny",
    "score": "configs/guard.py:tiny",
    "mbat": "configs/cmai.py:vqa_tiny",
    "attack": "configs/cmai.py:vqa_tiny",
    "ppo": "configs/impforge.py:tiny",
}
ROWS = 4


def mesh() -> Mesh:
    return make_mesh(devices=jax.devices()[:1])


def programs(kind: str, **changes: Any) -> list[Any]:
    return programs_of(kind, Job(load_config(SPECS[kind]), mesh(), ROWS, **changes))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_traced_without_weights(kind: str) -> None:
    for program in programs(kind):
        traced = program.run.trace(*program.arguments)
        assert traced.jaxpr.jaxpr.eqns
        assert program.rows == ROWS
        assert set(program.kinds) >= {"base", "batch"}


def shapes(tree: Any) -> list[Any]:
    """Each leaf's type, and its shape but for the length of texts."""
    leaves = jax.tree.leaves_with_path(tree)
    return [(path, x.shape[:1], x.shape[2:], x.dtype) for path, x in leaves]


def examples_of(name: str) -> list[Record]:
    rows = examples(name, "val", ROWS)
    return [Record(row.id, (to_png(row.scene),), row.text, row.label) for row in rows]


def test_a_guards_batch_is_the_encoders() -> None:
    guard = Guard.from_pretrained("toy://llava", prompt="short")
    batch = guard.encoder.training_batch(examples_of("implicit"), 48)
    assert shapes(programs("sft")[0].arguments[2]) == shapes(batch)
    del batch["labels"]
    assert shapes(programs("score")[0].arguments[2]) == shapes(batch)


def test_the_check_reads_arrays_like_the_tasks() -> None:
    guard = Guard.from_pretrained("toy://llava", prompt="short")
    reader = Reader(guard, "clip", "toy://clip", 96)
    task = Task(guard, (), reader, check_for(guard, reader))
    (program,) = programs("mbat")
    batch = task.batch(examples_of("implicit"), 96)
    assert shapes(program.arguments[2]) == shapes(batch)
    assert shapes(program.arguments[1]) == shapes(task.frozen_parts)


def test_edited_texts_are_planned_as_the_recipe_makes_them() -> None:
    guard = Guard.from_pretrained("toy://llava", prompt="short")
    reader = Reader(guard, "clip", "toy://clip", 96)
    task = Task(guard, (), reader, check_for(guard, reader))
    config = load_config(SPECS["mbat"], ["--config.mbat.perturb=edits"])
    (program,) = programs_of("mbat", Job(config, mesh(), ROWS))
    made = edited_rows(task, examples_of("implicit"), 96, config.mbat.steps, config.mbat.edits)
    planned = program.arguments[2]
    for name, array in made.items():
        assert planned[name].shape[:2] == array.shape[:2] and planned[name].dtype == array.dtype
    assert program.run.trace(*program.arguments).jaxpr.jaxpr.eqns


def test_the_forges_state_and_reward_models_are_those_that_are_loaded() -> None:
    config = load_config(SPECS["ppo"])
    rewriter = load_rewriter(config)
    adam = optimizer(config.optim, 100)
    state = first_state(rewriter, adam, config, mesh(), DEFAULT_RULES)
    rollout, improve = programs("ppo")
    assert shapes(improve.arguments[0]) == shapes(state)
    assert shapes(improve.arguments[2]) == shapes(rewriter.rewards.frozen)
    assert shapes(rollout.arguments[1]) == shapes(rewriter.frozen)
    triplets = world(ROWS)
    encoded = rewriter.rewards.encode([t.query for t in triplets], triplets)
    context = dict(rewriter.rewards.context(triplets)) | {"baseline": np.zeros(ROWS, np.float32)}
    assert shapes(improve.arguments[5]) == shapes(encoded)
    assert shapes(improve.arguments[4]) == shapes(context)


def test_remat_and_the_texts_length_are_the_jobs() -> None:
    (plain,), (full,) = programs("sft"), programs("sft", remat="full", length=80)
    assert plain.length == 96 and full.length == 80
    assert full.arguments[2]["input_ids"].shape == (ROWS, 80)


def test_a_configuration_says_what_it_is_of() -> None:
    for kind, spec in SPECS.items():
        assert kind in kinds_of(load_config(spec))
    with pytest.raises(UserError, match="--kind ppo: of this configuration there is sft, score"):
        programs_of("ppo", Job(load_config(SPECS["sft"]), mesh()))


def test_a_row_that_has_no_room_beside_its_picture_is_refused() -> None:
    with pytest.raises(UserError, match="--length 4: a picture alone takes"):
        programs("sft", length=4)
