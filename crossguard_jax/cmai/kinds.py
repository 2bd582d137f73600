"""What may be immunized: each kind of task by name, and how a configuration makes one.

All of them learn by one step (`immunize_step`). A kind says what its loss is, what its adversary
and its policy may be, and what comes of a run.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from flax import nnx

from crossguard_jax.cmai.answering import Checked
from crossguard_jax.cmai.consistency import Check, ConsistencyConfig, make_check
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.matching import Matching
from crossguard_jax.cmai.mbat import PERTURB
from crossguard_jax.cmai.policy import OPTIONS
from crossguard_jax.cmai.reader import Placed, Reader
from crossguard_jax.cmai.spoken import answer, captions, pairs
from crossguard_jax.cmai.task import Task
from crossguard_jax.cmai.vetted import Vetted
from crossguard_jax.cmai.wording import Wording
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import Rules
from crossguard_jax.core.typing import PRNGKeyArray
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.guard.augment import longest_row
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.recipe import load_base, trained_settings
from crossguard_jax.hf.clip import ClipEncoder, load_clip
from crossguard_jax.nn import lora
from crossguard_jax.nn.clip import ClipConfig
from crossguard_jax.nn.llava import LlavaConfig

Base = Any
"""A `Guard` or a `ClipEncoder`, with a fresh adapter."""


@dataclass(frozen=True)
class TaskKind:
    """A kind of task.

    Attributes:
        load: ``load(config, mesh, rules, key)``: the model with a fresh adapter.
        make: ``make(config, base, sources, reader, check)``: the task.
        result: what comes of a run, given the task, what was trained, what was not, the policy and
            its threshold.
        perturb: what of a row its adversary may move, of `PERTURB`.
        policy: what may be done by S_c, of `policy.OPTIONS`.
        microbatches: a batch may be taken in parts: no row's loss looks at another row.
        verdicts: the rows are requests as a guard reads them, with all that its training does to
            them.
    """

    load: Callable[..., Base]
    make: Callable[..., Checked]
    result: Callable[..., Any] = Vetted
    perturb: tuple[str, ...] = ("picture", "text", "both")
    policy: tuple[str, ...] = ("reject",)
    microbatches: bool = True
    verdicts: bool = False

    def check(self, config: Any) -> None:
        """Refuses what a configuration asks for and this kind has not.

        Raises:
            UserError: by the field's name.
        """
        name = config.task.kind

        def refuse(field: str, value: Any, reason: str) -> None:
            raise UserError(f"{field} {value!r}: {reason} (task.kind {name!r})")

        if config.mbat.on and config.mbat.perturb not in self.perturb:
            refuse("mbat.perturb", config.mbat.perturb, f"one of {', '.join(self.perturb)}")
        for branch in config.arm.branches:
            if branch["do"] not in self.policy:
                refuse("arm.branches", branch["do"], f"one of {', '.join(self.policy)}")
        if config.optim.accumulate > 1 and not self.microbatches:
            reason = "its rows are compared with each other; set it to 1"
            refuse("optim.accumulate", config.optim.accumulate, reason)
        if self.verdicts:
            return
        augment, cmcv, data = config.data.augment, config.cmcv, config.data
        for field, value, plain in (
            ("data.augment.long", augment.long, 0),
            ("data.augment.injected", augment.injected, 0),
            ("cmcv.text_source", cmcv.text_source, "clip"),
            ("mbat.outer", config.mbat.outer, "task"),
            ("train.loss", config.train.loss, "vocabulary"),
            ("mbat.outer", config.mbat.outer, "task"),
            ("data.blank", data.blank, ""),
        ):
            if value != plain:
                refuse(field, value, f"set it to {plain!r}")


def answers_of(config: Any, sources: Mapping[str, RecordSource]) -> tuple[str, ...]:
    """The answers that a model is held to: ``task.labels``, or the most common ones of the
    training rows; none are the prompt's two.

    Raises:
        UserError: fewer than two.
    """
    if not config.task.most_common:
        return tuple(config.task.labels)
    counts = Counter(source[i].label for source in sources.values() for i in range(len(source)))
    ranked = sorted(counts, key=lambda label: (-counts[label], label))[: config.task.most_common]
    if len(ranked) < 2:
        raise UserError(f"data.sources: {len(ranked)} kind of label; a task needs two answers")
    return tuple(ranked)


def _llava(config: Any, mesh: Any, rules: Rules, key: PRNGKeyArray) -> Guard:
    guard = load_base(config, mesh, rules)
    trained = trained_settings(config, guard)
    model = lora.attach(guard.model, **config.lora, key=key)
    return Guard(model, guard.folder, trained, mesh, rules)


def _clip(config: Any, mesh: Any, rules: Rules, key: PRNGKeyArray) -> ClipEncoder:
    if config.model.vision_tower:
        raise UserError("model.vision_tower: of a LLaVA; a CLIP that is robust is its model.path")
    clip = load_clip(config.model.path, config.model.dtype, mesh, rules, remat=config.model.remat)
    if clip.source != "transformers":
        raise UserError(
            f"model.path {config.model.path}: {clip.source}'s layout is read and not written; give "
            "transformers' folder of this CLIP"
        )
    return replace(clip, model=lora.attach(clip.model, **config.lora, key=key))


def _closed(
    config: Any,
    guard: Guard,
    sources: Mapping[str, RecordSource],
    reader: Reader | None = None,
    check: Check | None = None,
) -> Task:
    return Task(guard, answers_of(config, sources), reader, check)


def _worded(
    config: Any,
    guard: Guard,
    sources: Mapping[str, RecordSource],
    reader: Reader | None = None,
    check: Check | None = None,
) -> Wording:
    kind, most = config.task.kind, config.task.max_new_tokens
    expand = {"captions": captions, "vqa": answer}[kind]
    return Wording(guard, kind, partial(expand, form=config.task.form), most, reader, check)


def _matched(
    config: Any,
    clip: ClipEncoder,
    sources: Mapping[str, RecordSource],
    reader: Reader | None = None,
    check: Check | None = None,
) -> Matching:
    return Matching(clip, partial(pairs, form=""), reader, check)


KINDS: Mapping[str, TaskKind] = {
    "answers": TaskKind(_llava, _closed, Immunized, PERTURB, tuple(OPTIONS), verdicts=True),
    "vqa": TaskKind(_llava, _worded),
    "captions": TaskKind(_llava, _worded),
    "retrieval": TaskKind(_clip, _matched, microbatches=False),
}
"""By ``task.kind``: a closed list of answers; any words for a question, or for a picture; a CLIP's
captions and pictures."""


def kind_of(config: Any) -> TaskKind:
    """The kind of a configuration's task.

    Raises:
        UserError: there is no such kind, or it has not what the configuration asks for.
    """
    if config.task.kind not in KINDS:
        raise UserError(f"task.kind {config.task.kind!r} is none of {', '.join(KINDS)}")
    kind = KINDS[config.task.kind]
    kind.check(config)
    return kind


def start(
    config: Any, sources: Mapping[str, RecordSource], mesh: Any, rules: Rules
) -> tuple[Any, Any]:
    """The task of a configuration, with a fresh adapter and a fresh check; and what is trained."""
    kind = kind_of(config)
    model_key, check_key = jax.random.split(jax.random.key(config.train.seed))
    base = kind.load(config, mesh, rules, model_key)
    if not config.cmcv.on:
        task = kind.make(config, base, sources)
        return task, {"adapters": task.adapters}
    cmcv = config.cmcv
    place = base if isinstance(base, Guard) else Placed(mesh, rules)
    reader = Reader(place, cmcv.text_source, cmcv.text_path, longest_row(config.data))
    settings = check_settings(cmcv, base.model.config, reader.width)
    check = make_check(settings, check_key)
    task = kind.make(config, base, sources, reader, check)
    return task, {"adapters": task.adapters, "check": nnx.split(check, graph=False)[1]}


def check_settings(
    cmcv: Any, model: LlavaConfig | ClipConfig, text_width: int
) -> ConsistencyConfig:
    """What the check of a model is, by the configuration's ``cmcv``."""
    layers = model.vision_feature_layer
    return ConsistencyConfig(
        picture_width=2 * model.vision.hidden_size * len(layers),
        text_width=text_width,
        kind=cmcv.kind,
        shared_width=cmcv.shared_width,
        hidden_width=cmcv.hidden_width,
        picture_layers=layers,
        text_source=cmcv.text_source,
    )
