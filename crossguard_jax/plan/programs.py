"""The real steps, on arrays that do not exist.

Each is what its verb runs, made by the same function, at the shapes that a configuration says. A
tokenizer decides ids and lengths: ids do not matter here, and rows are as long as the longest.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.cmai import recipe as cmai
from crossguard_jax.cmai.answering import WINDOWED, Answering
from crossguard_jax.cmai.consistency import make_check
from crossguard_jax.cmai.folders import ANSWERS
from crossguard_jax.cmai.immunize_step import CmaiState
from crossguard_jax.cmai.kinds import check_settings
from crossguard_jax.cmai.mbat import EDITED
from crossguard_jax.core.errors import UserError
from crossguard_jax.guard import guard as guards
from crossguard_jax.guard.augment import longest_row
from crossguard_jax.guard.batches import microbatches
from crossguard_jax.guard.loss import guard_loss, mass_weight
from crossguard_jax.impforge.ppo.archive import Archive
from crossguard_jax.impforge.ppo.policy import RewriterPolicy, make_policy
from crossguard_jax.impforge.ppo.recipe import Breadth, PpoState, make_improve
from crossguard_jax.impforge.ppo.rewriter import make_rollout
from crossguard_jax.impforge.ppo.update import PpoSettings
from crossguard_jax.impforge.rewards.judges import Judges
from crossguard_jax.nn import lora
from crossguard_jax.nn.bert import BertConfig
from crossguard_jax.nn.clip import ClipConfig, TextConfig
from crossguard_jax.nn.llama import LlamaConfig
from crossguard_jax.nn.llava import LlavaConfig
from crossguard_jax.plan.jobs import Job, Program
from crossguard_jax.train.optim import optimizer
from crossguard_jax.train.step import fresh_state, make_step

LABELS = (0, 1)
"""Ids of the label tokens: any two."""

SCORED, PGD_STEPS = 16, 10
"""Rows that ``score`` takes at once by default; steps of the attack that is planned for."""


def sft(job: Job) -> list[Program]:
    """The guard's training step (`guard.recipe`)."""
    config = job.config
    model_config, model = job.model(config.model, LlavaConfig, config.lora)
    graphdef, adapters, frozen = lora.split(model)
    adam = optimizer(config.optim, config.train.steps)
    rows, length = job.rows or config.train.batch_size, job.length or longest_row(config.data)
    step = make_step(
        guard_loss(graphdef, LABELS, config.train.loss),
        adam,
        job.parts(rows),
        microbatches,
        functools.partial(mass_weight, config.train.labels_first * config.train.steps),
    )
    state = job.place(jax.eval_shape(lambda t: fresh_state(t, adam, 0), adapters))
    batch = _guard_batch(job, model_config, rows, length)
    batch |= job.batch(labels=((rows,), jnp.int32))
    frozen = job.place(frozen)
    kinds = {
        "base": frozen,
        "adapters": state.trainable,
        "optimizer": state.opt_state,
        "batch": batch,
    }
    return [Program("training step", step, (state, frozen, batch), kinds, rows, length)]


def scoring(job: Job) -> list[Program]:
    """A batch of ``score`` by the guard, its adapter merged (`guard.guard`)."""
    model_config, model = job.model(job.config.model, LlavaConfig)
    graphdef, adapters, frozen = lora.split(model)
    rows, length = job.rows or SCORED, job.length or longest_row(job.config.data)
    batch, frozen = _guard_batch(job, model_config, rows, length), job.place(frozen)
    arguments = (graphdef, (adapters, frozen), batch, np.asarray(LABELS))
    kinds = {"base": frozen, "batch": batch}
    return [Program("scoring", guards.p_unsafe, arguments, kinds, rows, length)]


def _guard_batch(job: Job, model: LlavaConfig, rows: int, length: int) -> dict[str, Any]:
    """As `guard.encoding` makes it, where each row has its own picture."""
    _check_length(model, length)
    side = model.vision.image_size
    return job.batch(
        input_ids=((rows, length), jnp.int32),
        attention_mask=((rows, length), jnp.int32),
        pixel_values=((rows, 3, side, side), jnp.float32),
    )


def _check_length(model: LlavaConfig, length: int) -> None:
    if length <= model.tokens_per_image:
        raise UserError(
            f"--length {length}: a picture alone takes {model.tokens_per_image} tokens; give more"
        )


@dataclass(frozen=True)
class _TextTower:
    """A check's reader, as `cmai.answering` takes it."""

    source: str
    graphdef: Any
    state: Any
    width: int
    length: int


def _answering(job: Job, length: int) -> tuple[LlavaConfig, Answering, dict[str, Any], Any]:
    """``(model's config, functions, what is trained, frozen parts)`` of CMAI on a model."""
    config = job.config
    if config.task.kind != ANSWERS:
        raise UserError(f"task.kind {config.task.kind!r}: only {ANSWERS!r} is planned for")
    model_config, model = job.model(config.model, LlavaConfig, config.lora)
    n_labels = config.task.most_common or len(config.task.labels) or 2
    reader, check = None, None
    if config.cmcv.on:
        reader = _text_tower(job, model_config, length)
        settings = check_settings(config.cmcv, model_config, reader.width)
        check = jax.eval_shape(lambda: make_check(settings, jax.random.key(0)))
    pixels = np.zeros((3, 1, 1), np.float32), np.ones((3, 1, 1), np.float32)
    task = Answering(model, tuple(range(n_labels)), pixels, reader, check)
    trainable = {"adapters": task.adapters}
    if check is not None:
        trainable["check"] = nnx.split(check, graph=False)[1]
    return model_config, task, trainable, job.place(task.frozen_parts)


def _text_tower(job: Job, model: LlavaConfig, length: int) -> _TextTower:
    cmcv = job.config.cmcv
    if cmcv.text_source != "clip":
        return _TextTower(cmcv.text_source, None, None, model.text.hidden_size, length)
    try:
        kind: type = TextConfig
        text, make = job.read(cmcv.text_path, kind, "float32")
    except UserError:
        whole, clip = job.read(cmcv.text_path, ClipConfig, "float32")
        text, make = whole.text, lambda: clip().text_model
    graphdef, state = nnx.split(jax.eval_shape(make), graph=False)
    return _TextTower("clip", graphdef, state, text.hidden_size, text.max_position_embeddings)


def mbat(job: Job) -> list[Program]:
    """The step of adversarial training, its inner attack in it (`cmai.recipe`)."""
    config = job.config
    rows, length = job.rows or config.train.batch_size, job.length or longest_row(config.data)
    model_config, task, trainable, frozen = _answering(job, length)
    adam = optimizer(config.optim, config.train.steps)
    controller = cmai.controller_of(config, 0.0)
    step = cmai.mbat_step(config, task, controller, adam, job.parts(rows))
    recent = np.zeros(cmai.RECENT, np.float32) if config.arm.follow else None

    def start(trainable: Any) -> CmaiState:
        return CmaiState(**vars(fresh_state(trainable, adam, 0)), arm=None)

    arm = job.place(controller.start(0.0, recent))
    state = replace(job.place(jax.eval_shape(start, trainable)), arm=arm)
    batch = _task_batch(job, model_config, task, rows, length)
    if config.mbat.perturb == "edits":
        batch |= job.batch(
            **{
                EDITED + name: ((rows, config.mbat.steps, *x.shape[1:]), x.dtype)
                for name, x in batch.items()
                if name in WINDOWED
            }
        )
    kinds = {
        "base": frozen["model"],
        "the check's reader": frozen.get("reader"),
        "adapters": state.trainable,
        "optimizer": state.opt_state,
        "batch": batch,
    }
    return [Program("MBAT step", step, (state, frozen, batch), kinds, rows, length)]


def _task_batch(
    job: Job, model: LlavaConfig, task: Answering, rows: int, length: int
) -> dict[str, Any]:
    """As `cmai.task` makes it."""
    _check_length(model, length)
    side = model.vision.image_size
    batch = job.batch(
        input_ids=((rows, length), jnp.int32),
        attention_mask=((rows, length), jnp.int32),
        text_mask=((rows, length), jnp.bool_),
        pixels=((rows, 3, side, side), jnp.float32),
        pictures=((rows,), jnp.int32),
        has_picture=((rows,), jnp.bool_),
        labels=((rows,), jnp.int32),
    )
    if task.reader is not None:
        read = (rows, task.reader.length)
        batch |= job.batch(read_ids=(read, jnp.int32), read_mask=(read, jnp.bool_))
    return batch


def attack(job: Job) -> list[Program]:
    """PGD on the answer's margin, in pictures (`attacks.pgd`)."""
    config = job.config
    rows, length = job.rows or config.attack.batch_size, job.length or longest_row(config.data)
    model_config, task, trainable, frozen = _answering(job, length)
    budget = Budget(8 / 255, config.attack.norm, PGD_STEPS)

    def run(trainable: Any, frozen: Any, batch: Any, key: Any) -> Any:
        batch = task.read(trainable, frozen, batch)
        still = jnp.float32(0)

        def objective(x: Any, key: Any) -> Outcome:
            answers = task.answers(trainable, frozen, batch, (x, still))
            return Outcome(answers.margin, answers.margin)

        return pgd(objective, batch["pixels"], key, budget)

    batch, trainable = _task_batch(job, model_config, task, rows, length), job.place(trainable)
    kinds = {
        "base": frozen["model"],
        "the check's reader": frozen.get("reader"),
        "adapters": trainable,
        "batch": batch,
    }
    arguments = (trainable, frozen, batch, job.key())
    return [Program(f"PGD-{PGD_STEPS}", jax.jit(run), arguments, kinds, rows, length)]


def ppo(job: Job) -> list[Program]:
    """Rollout and improvement of the rewriter (`impforge.ppo`): together an iteration."""
    config = job.config
    rows, length = job.rows or config.ppo.batch_size, job.length or config.rewriter.prompt_length
    policy, trainable, frozen, vocabulary = _policy(job)
    judges, models, width, pictures = _judges(job, vocabulary)
    adam = optimizer(config.optim, _updates(config))
    breadth = Breadth(**config.breadth)
    settings = PpoSettings(
        **config.ppo.settings, normalize_by_category=breadth.normalize_by_category
    )
    improve = make_improve(
        *(policy, judges, adam, settings, dict(config.rewards.weights), breadth, 16),
        job.parts(rows // settings.minibatches),
    )
    rollout = make_rollout(policy, evaluated=True)

    def start(trainable: Any) -> PpoState:
        state = fresh_state(trainable, adam, 0)
        archive = Archive.empty(config.breadth.archive_size, width)
        return PpoState(**vars(state), kl_coef=jnp.float32(0), archive=archive)

    state, frozen = job.place(jax.eval_shape(start, trainable)), job.place(frozen)
    batch = job.batch(
        prompt=((rows, length), jnp.int32),
        prompt_mask=((rows, length), jnp.bool_),
        category=((rows,), jnp.int32),
    )
    written = (state.trainable, frozen, job.key(), batch)
    trajectory = job.spread(jax.eval_shape(rollout, *written))
    context = job.batch(
        picture=((rows, pictures), jnp.float32),
        query=((rows, width), jnp.float32),
        caption_alone=((rows,), jnp.float32),
        baseline=((rows,), jnp.float32),
    )
    judged = {
        "safety": config.rewards.safety.max_length,
        "text": config.rewards.semantic.max_length,
    }
    if judges.by_caption:
        judged["joined"] = judged["text"]
    encoded: dict[str, Any] = {}
    for name, n in judged.items():
        ids, mask = ((rows, n), jnp.int32), ((rows, n), jnp.bool_)
        encoded |= job.batch(**{f"{name}_ids": ids, f"{name}_mask": mask})
    own = {"base": frozen, "adapters": state.trainable}
    improved = own | {
        "reward models": models,
        "optimizer": state.opt_state,
        "batch": (trajectory, context, encoded, state.archive),
    }
    given = (state, frozen, models, trajectory, context, encoded)
    n_new = config.rewriter.max_new_tokens
    return [
        Program(
            *("rollout", rollout, written, own | {"batch": batch}, rows, length, n_new - 1),
            beside={name: improved[name] for name in ("reward models", "optimizer")},
        ),
        Program("improve", improve, given, improved, rows, length),
    ]


def _updates(config: Any) -> int:
    settings = config.ppo.settings
    return config.ppo.iterations * settings.epochs * settings.minibatches


def _policy(job: Job) -> tuple[RewriterPolicy, Any, Any, int]:
    """``(policy, what is trained, frozen, size of the vocabulary)``."""
    section = job.config.rewriter
    model_config, model = job.model(section, LlamaConfig)
    made: list[RewriterPolicy] = []

    def make(model: Any) -> tuple[Any, Any]:
        policy, trainable, frozen = make_policy(
            model,
            **section.lora,
            key=jax.random.key(0),
            max_new_tokens=section.max_new_tokens,
            eos_ids=(2,),
            pad_id=0,
            temperature=section.temperature,
        )
        made.append(policy)
        return trainable, frozen

    trainable, frozen = jax.eval_shape(make, model)
    return made[0], trainable, frozen, model_config.vocab_size


def _judges(job: Job, vocabulary: int) -> tuple[Judges, dict[str, Any], int, int]:
    """``(functions, their models, width of sentence vectors, width of pictures' vectors)``."""
    section = job.config.rewards
    _, safety = _judge(job, section.safety.path, LlamaConfig)
    clip, judge = _judge(job, section.overlap.path, ClipConfig)
    width = clip.projection_dim
    if section.semantic.kind == "caption":
        sentence, judge = _judge(job, section.semantic.path, BertConfig)
        width = sentence.hidden_size
    judges = Judges(safety, judge, LABELS, float(section.overlap.tau))
    table = {
        "vocabulary": jax.ShapeDtypeStruct((vocabulary, clip.projection_dim), jnp.float32),
        "special": jax.ShapeDtypeStruct((vocabulary,), jnp.bool_),
    }
    return judges, job.place(judges.frozen | table), width, clip.projection_dim


def _judge(job: Job, path: str, kind: type) -> tuple[Any, Any]:
    config, make = job.read(path, kind, job.config.rewards.dtype)
    return config, jax.eval_shape(make)


KINDS: dict[str, Callable[[Job], list[Program]]] = {
    "sft": sft,
    "mbat": mbat,
    "ppo": ppo,
    "score": scoring,
    "attack": attack,
}
"""What can be planned, by the word of the command line."""

_FIRST_FIELDS = {"rewriter": ("ppo",), "mbat": ("mbat", "attack"), "model": ("sft", "score")}


def kinds_of(config: Any) -> tuple[str, ...]:
    """What a configuration is of: the forge's, CMAI's or the guard's."""
    return next(kinds for field, kinds in _FIRST_FIELDS.items() if field in config)


def programs_of(kind: str, job: Job) -> list[Program]:
    """The programs of a kind.

    Raises:
        UserError: the configuration is not of that kind.
    """
    if kind not in kinds_of(job.config):
        there_are = ", ".join(kinds_of(job.config))
        raise UserError(f"--kind {kind}: of this configuration there is {there_are}")
    return KINDS[kind](job)
