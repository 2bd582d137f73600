"""ImpForge, stage 2: PPO on the rewriter under three rewards, by the one training loop.

An iteration is two jitted programs with one host boundary between them: `Rewriter.rollout`, then
the decoding and re-tokenization that other models' vocabularies need, then `make_improve`'s program
(rewards, breadth, advantages, all epochs and minibatches). The archive, the KL weight and the
random key are in the train state, so a run that is killed resumes bit for bit.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crossguard_jax.core.config import check_positive
from crossguard_jax.core.errors import UserError, check_divides
from crossguard_jax.core.sharding import (
    DEFAULT_RULES,
    Rules,
    batch_sharding,
    even_parts,
    make_mesh,
)
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.hf import tokens
from crossguard_jax.hf.load import encoding_hash, folder_hash
from crossguard_jax.impforge.ppo.archive import Archive, crowd, insert, nearest
from crossguard_jax.impforge.ppo.policy import RewriterPolicy
from crossguard_jax.impforge.ppo.rewriter import Rewriter, Written, fluency
from crossguard_jax.impforge.ppo.rounds import Rounds
from crossguard_jax.impforge.ppo.update import PpoSettings, Trajectory, sequence_kl, steer, update
from crossguard_jax.impforge.rewards.judges import Judges, total
from crossguard_jax.impforge.rewards.rewards import Rewards
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.runtime import processes
from crossguard_jax.runtime.mesh import local_mesh, spans_processes
from crossguard_jax.runtime.placement import Share, put
from crossguard_jax.train.identity import deciding
from crossguard_jax.train.loop import Hook, Schedule, train
from crossguard_jax.train.optim import optimizer
from crossguard_jax.train.step import Metrics, Step, TrainState, init_state, settled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PpoState(TrainState):
    """A train state with what else an iteration changes.

    Attributes:
        kl_coef: the KL's weight now, float32.
        archive: what was written lately.
    """

    kl_coef: Any
    archive: Any


@dataclass(frozen=True)
class Breadth:
    """What keeps a rewriter from saying one thing; each is a switch, and off by default.

    Attributes:
        quota: every category has its equal share of each batch.
        normalize_by_category: advantages are whitened inside each category.
        novelty: weight of the distance to the nearest archived text, added to the score.
        crowd_limit: near-duplicates (in the archive, or earlier in the batch) beyond which a text
            earns nothing; 0 is no limit.
        crowd_cosine: the least cosine of near-duplicates.
        fluency_floor: mean reference log-probability a token, in nats, below which a text earns
            nothing (gibberish can please a reward model); -inf is no floor.
        archive_size: texts remembered.
    """

    quota: bool = False
    normalize_by_category: bool = False
    novelty: float = 0.0
    crowd_limit: int = 0
    crowd_cosine: float = 0.95
    fluency_floor: float = float("-inf")
    archive_size: int = 1024


def score(
    components: Mapping[str, Array],
    weights: Mapping[str, float],
    trajectory: Trajectory,
    archive: Archive,
    vectors: Array,
    breadth: Breadth,
) -> tuple[Array, Archive, Metrics]:
    """A text's score before KL: the weighted rewards, and what breadth makes of them.

    Args:
        components: the rewards, [B] each.
        weights: theirs.
        trajectory: the rollout.
        archive: what was written before.
        vectors: unit sentence vectors of the texts, [B, D]; zero is a text that was not read, which
            is not new.
        breadth: the switches.

    Returns:
        ``(scores [B], the archive with these texts, metrics)``.
    """
    scores = total(components, weights)
    fluent = fluency(trajectory) >= breadth.fluency_floor
    crowded = jnp.zeros_like(fluent)
    if breadth.crowd_limit:
        crowded = crowd(archive, vectors, breadth.crowd_cosine) >= breadth.crowd_limit
    read = vectors.any(axis=1)
    distance = jnp.where(read, 1.0 - nearest(archive, vectors), 0.0)
    earned = jnp.where(fluent & ~crowded, scores + breadth.novelty * distance, 0.0)
    metrics = {
        "reward": scores.mean(),
        "score": earned.mean(),
        "novelty": distance.mean(),
        "crowded": crowded.mean(),
        "not_fluent": 1.0 - fluent.mean(),
    }
    return earned, insert(archive, vectors, fluent & read), metrics


def make_improve(
    policy: RewriterPolicy,
    rewards: Judges,
    adam: optax.GradientTransformation,
    settings: PpoSettings,
    weights: Mapping[str, float],
    breadth: Breadth,
    n_categories: int,
    accumulate: int = 1,
    rules: Rules = DEFAULT_RULES,
) -> Callable[..., tuple[PpoState, Metrics]]:
    """``improve(state, frozen, reward_models, trajectory, context, encoded) -> (state, metrics)``.

    ``context`` has ``baseline`` [B] beside what the rewards know: the score of the query itself.
    One jitted program; the state given is donated, and lies where ``rules`` put it.
    """
    evaluate = policy.evaluate

    def improve(
        state: PpoState,
        frozen: Any,
        models: Any,
        trajectory: Trajectory,
        context: Any,
        encoded: Any,
    ) -> tuple[PpoState, Metrics]:
        tokens, mask = trajectory.inputs["tokens"], trajectory.mask
        components = rewards.components(models, tokens, mask, context, encoded)
        vectors = rewards.vectors(models, encoded)
        scores, archive, metrics = score(
            components, weights, trajectory, state.archive, vectors, breadth
        )
        key = _keys(state)[1]
        trainable, opt_state, update_metrics = update(
            evaluate,
            adam,
            settings,
            state.trainable,
            state.opt_state,
            frozen,
            trajectory,
            # A picture's own effect on the rewards is noise to the policy: what the query itself
            # earns beside it is a baseline, which shifts the objective by a constant.
            scores - context["baseline"],
            state.kl_coef,
            key,
            n_categories,
            accumulate,
        )
        kl = sequence_kl(trajectory.logprobs, trajectory.reference, mask).mean()
        metrics |= update_metrics | {name: value.mean() for name, value in components.items()}
        metrics |= _text_metrics(trajectory) | {"kl": kl, "kl_coef": state.kl_coef}
        metrics["objective"] = metrics["reward"] - state.kl_coef * kl
        state = replace(
            state,
            step=state.step + 1,
            trainable=trainable,
            opt_state=opt_state,
            kl_coef=steer(state.kl_coef, kl, mask.shape[0], settings),
            archive=archive,
        )
        return settled(state, rules), metrics

    return jax.jit(improve, donate_argnums=0)


def _text_metrics(trajectory: Trajectory) -> Metrics:
    return {
        "length": trajectory.mask.sum(axis=1).mean(),
        "ended": trajectory.ended.mean(),
        "fluency": fluency(trajectory).mean(),
    }


def _keys(state: TrainState) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Keys of this iteration's sampling and shuffles: no two iterations share one."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    first, second = jax.random.split(key)
    return first, second


def make_iteration(
    rewriter: Rewriter,
    improve: Callable[..., tuple[PpoState, Metrics]],
    triplets: Sequence[Triplet],
    weights: Mapping[str, float],
    sharding: NamedSharding | None = None,
    ahead: bool = True,
) -> Step:
    """An iteration as the training loop wants it: ``step(state, frozen, batch)``.

    ``ahead`` scores all queries beforehand, each once; without it they are scored when drawn, which
    is less work where there are more than will be drawn.
    """
    context = dict(rewriter.prepare(triplets)[1])
    queries = [t.query for t in triplets]
    # Of all, so that batches have one shape.
    ids = {} if ahead else tokens.encode(rewriter.tokenizer, queries)
    if ahead:
        own = rewriter.rewards_of(queries, triplets, context=context)
        context["baseline"] = np.asarray(total(own, weights))

    def place(arrays: Mapping[str, Any]) -> dict[str, Array]:
        if sharding is None:
            return {k: jnp.asarray(v) for k, v in arrays.items()}
        return put(dict(arrays), sharding)

    def iteration(state: Any, frozen: Any, batch: Any) -> tuple[PpoState, Metrics]:
        policy, models = frozen
        # Every process reads every text: they are few, and how long they are decides the shapes.
        rows = processes.gather(batch["row"])
        trajectory = rewriter.rollout(state.trainable, policy, _keys(state)[0], batch)
        drawn = [triplets[i] for i in rows]
        encoded = rewriter.rewards.encode(rewriter.texts(trajectory), drawn)
        about = place({k: v[rows] for k, v in context.items()})
        if not ahead:
            own = place(rewriter.rewards.encode([t.query for t in drawn], drawn))
            of_query = place({k: v[rows] for k, v in ids.items()})
            components = rewriter.judge(
                models, of_query["input_ids"], of_query["attention_mask"], about, own
            )
            about["baseline"] = total(components, weights)
        return improve(state, policy, models, trajectory, about, place(encoded))

    return iteration


_UPDATES = "ppo.iterations times ppo.settings.epochs times ppo.settings.minibatches,"
"""The optimizer's steps, as errors call them."""


def train_rewriter(
    config: Any,
    triplets: Sequence[Triplet],
    folder: str | Path,
    held_out: Sequence[Triplet] = (),
) -> tuple[Rewriter, Any]:
    """Trains the rewriter as ``configs/impforge.py`` says, or goes on with it.

    Args:
        config: the configuration.
        triplets: what to rewrite.
        folder: the run's; killed and started again, the run goes on where it was.
        held_out: triplets to measure on now and then.

    Returns:
        The rewriter, and its trained part (to pass to `Rewriter.write`). Where processes trained
        one together, each has its own now.

    Raises:
        UserError: see `Rewriter`, `Rewards` and `train.loop`; or a number of the configuration that
            has to be above 0 is not.
    """
    check_positive(config, *(f"ppo.{name}" for name in ("iterations", "batch_size", "save_every")))
    check_positive(config, "ppo.settings.epochs", "ppo.settings.minibatches", "optim.accumulate")
    rows = config.ppo.batch_size // config.ppo.settings.minibatches
    check_divides("optim.accumulate", config.optim.accumulate, "the minibatch", rows)
    check_positive(
        config, "rewriter.lora.rank", "rewriter.prompt_length", "rewriter.max_new_tokens"
    )
    check_positive(config, "breadth.archive_size")
    for name, weight in config.rewards.weights.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"rewards.weights.{name} {weight}: give a number of 0 or more")
    mesh, rules = make_mesh(**config.mesh), {**DEFAULT_RULES, **config.axis_rules}
    accumulate = even_parts("the minibatch", rows, config.optim.accumulate, mesh, rules)
    rewriter = load_rewriter(config, mesh, rules)
    breadth = Breadth(**config.breadth)
    settings = PpoSettings(
        **config.ppo.settings, normalize_by_category=breadth.normalize_by_category
    )
    weights = dict(config.rewards.weights)
    names = sorted({t.category for t in triplets})
    categories = [names.index(t.category) for t in triplets]
    updates = config.ppo.iterations * settings.epochs * settings.minibatches
    adam = optimizer(config.optim, updates, "optim", _UPDATES)
    improve = make_improve(
        *(rewriter.policy, rewriter.rewards, adam, settings, weights, breadth, len(names)),
        accumulate,
        rules,
    )
    sharding = batch_sharding(mesh, rules, config.ppo.batch_size)
    arrays = {**rewriter.prepare(triplets)[0], "category": np.asarray(categories, np.int32)}
    rounds = Rounds(
        arrays,
        categories,
        config.ppo.batch_size,
        config.ppo.seed,
        breadth.quota,
        Share.under(sharding),
    )
    state = train(
        first_state(rewriter, adam, config, mesh, rules),
        make_iteration(
            *(rewriter, improve, triplets, weights, sharding if mesh.size > 1 else None),
            ahead=len(triplets) <= config.ppo.iterations * config.ppo.batch_size,
        ),
        (rewriter.frozen, rewriter.rewards.frozen),
        rounds,
        Schedule(config.ppo.iterations, config.ppo.save_every, log_every=1),
        folder,
        identity=run_identity(config, rewriter, triplets),
        batch_sharding=sharding,
        hooks=[_measure(rewriter, config, held_out)] if held_out else [],
        name=f"training {Path(folder).name}",
        config=config,
    )
    if not spans_processes(mesh):
        return rewriter, state.trainable
    trained = jax.tree.map(jnp.asarray, processes.gather(state.trainable))
    del rewriter, state
    return load_rewriter(config, local_mesh(mesh), rules), trained


def load_rewriter(config: Any, mesh: Mesh | None = None, rules: Rules = DEFAULT_RULES) -> Rewriter:
    """The configuration's base and reward models, before any training."""
    rewards = Rewards(
        *(config.rewards, config.rewriter.path, mesh, rules),
        new_tokens=config.rewriter.max_new_tokens,
    )
    return Rewriter(config.rewriter, rewards, config.ppo.seed, mesh, rules)


def first_state(
    rewriter: Rewriter, adam: optax.GradientTransformation, config: Any, mesh: Mesh, rules: Rules
) -> PpoState:
    """The state at iteration 0."""
    state = init_state(rewriter.start, adam, config.ppo.seed, mesh, rules)
    archive = Archive.empty(config.breadth.archive_size, rewriter.rewards.width)
    extra = {"kl_coef": jnp.float32(config.ppo.settings.kl_coef), "archive": archive}
    whole = NamedSharding(mesh, PartitionSpec())
    return PpoState(**vars(state), **jax.device_put(extra, whole))


def run_identity(config: Any, rewriter: Rewriter, triplets: Sequence[Triplet]) -> dict[str, Any]:
    """What must be the same for a checkpoint to be this run's: all but what other steps read."""
    h = hashlib.sha256()
    for t in triplets:
        h.update(json.dumps([t.id, t.query, t.shown, t.category, t.digest]).encode())
    return {
        "base": folder_hash(rewriter.folder),
        "encoding": encoding_hash(rewriter.folder),
        "rewards": rewriter.rewards.hashes,
        "triplets": h.hexdigest(),
        "config": deciding(config),
    }


def objective(written: Written, weights: Mapping[str, float], kl_coef: float) -> np.ndarray:
    """``R - kl_coef * KL`` of each text: what PPO maximizes."""
    return np.asarray(total(written.components, weights)) - kl_coef * written.kl


def _measure(rewriter: Rewriter, config: Any, held_out: Sequence[Triplet]) -> Hook:
    """Texts for held-out triplets, with the same random numbers every time."""
    weights, coef = dict(config.rewards.weights), config.ppo.settings.kl_coef

    def measure(state: TrainState) -> dict[str, float]:
        key = jax.random.key(config.ppo.seed + 1)
        written = rewriter.write(held_out, key, state.trainable, config.ppo.batch_size)
        values = {name: float(np.mean(v)) for name, v in written.components.items()}
        gain = float(objective(written, weights, coef).mean())
        return values | {"objective": gain, "kl": float(written.kl.mean())}

    return Hook(config.ppo.eval_every, measure)
