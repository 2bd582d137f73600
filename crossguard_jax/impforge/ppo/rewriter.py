"""The rewriter with all it takes to write: prompts, tokenizer, policy, rewards.

Training, evaluation and forging write with one sampler and are judged by one jitted program, the
rewards' components. Between the two lies the one host boundary: texts are decoded and tokenized
again for models with other vocabularies. Training alone evaluates anew what was sampled.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.data.prompts import neutralize
from crossguard_jax.hf import tokens
from crossguard_jax.hf.load import load_model, resolve_folder
from crossguard_jax.hf.tokens import load_tokenizer, open_ended
from crossguard_jax.impforge.ppo.policy import RewriterPolicy, make_policy
from crossguard_jax.impforge.ppo.update import Trajectory, sequence_kl
from crossguard_jax.impforge.rewards.rewards import Rewards
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.io.progress import Progress
from crossguard_jax.nn.llama import Llama
from crossguard_jax.runtime import processes

Prepared = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
"""Rows of `Rewriter.prompts` and of `Rewards.context`."""

PROMPT_STEP = 16
"""Prompts are padded to a multiple of so many tokens."""


@dataclass(frozen=True)
class Written:
    """Texts and what is known of them; arrays have one row a text.

    Attributes:
        texts: the rewrites.
        components: each reward, float32.
        kl: ``log pi - log pi_ref`` of the text, in nats.
        fluency: mean log-probability of a token under the reference, in nats.
        ended: whether the text came to its end within the length.
    """

    texts: list[str]
    components: dict[str, np.ndarray]
    kl: np.ndarray
    fluency: np.ndarray
    ended: np.ndarray


class Rewriter:
    """A base language model that rewrites queries, and the rewards that judge it.

    Args:
        config: the ``rewriter`` part of ``configs/impforge.py``.
        rewards: the reward models.
        seed: of the adapters' start.
        mesh, rules: where the base goes; see `hf.load.load_model`.

    Raises:
        UserError: see `load_model`; or the prompt does not name its two places.
    """

    def __init__(
        self,
        config: Any,
        rewards: Rewards,
        seed: int = 0,
        mesh: Mesh | None = None,
        rules: Rules = DEFAULT_RULES,
    ):
        self.folder = resolve_folder(config.path)
        self.config, self.rewards = config, rewards
        model = load_model(self.folder, config.dtype, mesh, rules, remat=config.remat)
        if not isinstance(model, Llama):
            raise UserError(
                f"{config.path}: a rewriter is a Llama, this is a {type(model).__name__}"
            )
        self.tokenizer = load_tokenizer(self.folder, model.config.vocab_size)
        ends = _end_ids(self.tokenizer, self.folder)
        pad = self.tokenizer.pad_token_id
        self.policy, self.start, self.frozen = make_policy(
            model,
            targets=config.lora.targets,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            key=jax.random.key(seed),
            max_new_tokens=config.max_new_tokens,
            eos_ids=ends,
            pad_id=0 if pad is None or pad in ends else pad,
            temperature=config.temperature,
        )
        for place in ("{text}", "{picture}"):
            if config.prompt.count(place) != 1:
                raise UserError(
                    f"rewriter.prompt: write {place} exactly once; got {config.prompt!r}"
                )
        self._prepared: tuple[list[Triplet], Prepared] | None = None

    def prompts(self, triplets: Sequence[Triplet]) -> dict[str, np.ndarray]:
        """``prompt`` and ``prompt_mask`` [T, L], padded on the left to the longest of them.

        L goes in steps of 16, so that few shapes are compiled, up to ``prompt_length``.

        Raises:
            UserError: a prompt is longer; the message names the triplet.
        """
        limit, pad = self.config.prompt_length, self.policy.pad_id
        rows = []
        for triplet in triplets:
            prompt, special = self._prompt(triplet), not self.config.chat
            rows += open_ended(self.tokenizer, [prompt], add_special_tokens=special)
            if len(rows[-1]) > limit:
                raise UserError(
                    f"triplet {triplet.id!r}: its prompt has {len(rows[-1])} tokens, and "
                    f"rewriter.prompt_length is {limit}; raise it or shorten the row"
                )
        longest = max(map(len, rows), default=1)
        length = min(-(-longest // PROMPT_STEP) * PROMPT_STEP, limit)
        ids = np.full((len(rows), length), pad, np.int32)
        mask = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            ids[i, length - len(row) :] = row
            mask[i, length - len(row) :] = True
        return {"prompt": ids, "prompt_mask": mask}

    def _prompt(self, triplet: Triplet) -> str:
        special = self.tokenizer.all_special_tokens
        parts = {"{text}": triplet.query, "{picture}": triplet.shown}
        # One pass, so that a query that says "{picture}" stays a query.
        content = re.sub(
            r"\{text\}|\{picture\}",
            lambda place: neutralize(parts[place.group()], special),
            self.config.prompt,
        )
        if not self.config.chat:
            return content
        turns = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    @functools.cached_property
    def rollout(self) -> Any:
        """``rollout(trainable, frozen, key, batch) -> Trajectory``; None writes as the reference.

        ``batch`` has ``prompt``, ``prompt_mask`` [B, L] and ``category`` [B].
        """
        return make_rollout(self.policy, evaluated=True)

    @functools.cached_property
    def _writing(self) -> Any:
        """The same for who learns nothing of it: no values, and the sampler's log-probabilities."""
        return make_rollout(self.policy, evaluated=False)

    @functools.cached_property
    def judge(self) -> Any:
        """``judge(reward_models, tokens, mask, context, encoded) -> components [B]``, jitted."""
        return jax.jit(self.rewards.components)

    def rewards_of(
        self,
        texts: Sequence[str],
        triplets: Sequence[Triplet],
        batch_size: int = 64,
        context: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Each reward, [B] float32, of texts that somebody else wrote for the triplets.

        ``context`` is `Rewards.context` of the triplets, where the caller has it.
        """
        completions = tokens.encode(self.tokenizer, texts)
        context, last = context or self.rewards.context(triplets), len(triplets) - 1
        parts = []
        for start in range(0, len(triplets), batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), last)
            encoded = self.rewards.encode([texts[i] for i in rows], [triplets[i] for i in rows])
            about = {k: v[rows] for k, v in context.items()}
            ids, mask = completions["input_ids"][rows], completions["attention_mask"][rows]
            components = self.judge(self.rewards.frozen, ids, mask, about, encoded)
            parts.append(processes.gather(components))
        return {k: np.concatenate([p[k] for p in parts])[: len(triplets)] for k in parts[0]}

    def texts(self, trajectory: Trajectory) -> list[str]:
        """What was written, decoded; special tokens are left out."""
        ids, masks = processes.gather((trajectory.inputs["tokens"], trajectory.mask))
        rows = [row[mask].tolist() for row, mask in zip(ids, masks, strict=True)]
        return [
            text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        ]

    def prepare(self, triplets: Sequence[Triplet]) -> Prepared:
        """What `write` needs of triplets: rows of `prompts`, and of the rewards' context.

        Kept until others are asked for: a run trains on the very triplets that it forges from.

        Raises:
            UserError: as `prompts` and `Rewards.context`.
        """
        listed = list(triplets)
        if self._prepared is None or self._prepared[0] != listed:
            self._prepared = listed, self._prepare(listed)
        return self._prepared[1]

    def _prepare(self, triplets: Sequence[Triplet]) -> Prepared:
        return self.prompts(triplets), self.rewards.context(triplets)

    def write(
        self,
        triplets: Sequence[Triplet],
        key: PRNGKeyArray,
        trainable: Any = None,
        batch_size: int = 64,
        what: str = "rewriting",
        prepared: Prepared | None = None,
    ) -> Written:
        """A text for each triplet, by the policy (or by the reference, without ``trainable``).

        ``what`` names the work on the progress line; without it there is none. ``prepared`` is
        `prepare` of the triplets, where the caller has it.
        """
        prompts, context = prepared or self._prepare(triplets)
        parts: list[dict[str, Any]] = []
        texts: list[str] = []
        with Progress(what, len(triplets), unit="text", enabled=bool(what)) as progress:
            for start in range(0, len(triplets), batch_size):
                # The last batch is filled up with its last row, so that nothing compiles anew.
                n = min(batch_size, len(triplets) - start)
                rows = np.minimum(np.arange(start, start + batch_size), len(triplets) - 1)
                batch = {k: v[rows] for k, v in prompts.items()}
                batch["category"] = np.zeros(batch_size, np.int32)
                trajectory = self._writing(
                    trainable, self.frozen, jax.random.fold_in(key, start), batch
                )
                decoded = self.texts(trajectory)
                encoded = self.rewards.encode(decoded, [triplets[i] for i in rows])
                about = {k: v[rows] for k, v in context.items()}
                components = self.judge(
                    self.rewards.frozen,
                    trajectory.inputs["tokens"],
                    trajectory.mask,
                    about,
                    encoded,
                )
                facts = processes.gather(_facts(trajectory, components))
                parts.append({k: v[:n] for k, v in facts.items()})
                texts.extend(decoded[:n])
                progress.update(n)
        facts = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
        of_text = {k: facts.pop(k) for k in ("kl", "fluency", "ended")}
        return Written(texts, facts, **of_text)


def make_rollout(policy: RewriterPolicy, evaluated: bool) -> Any:
    """`Rewriter.rollout` of a policy; not ``evaluated`` without values, and with the sampler's own
    log-probabilities."""

    @jax.jit
    def run(trainable: Any, frozen: Any, key: PRNGKeyArray, batch: Any) -> Trajectory:
        prompt = batch["prompt"], batch["prompt_mask"]
        if trainable is None:
            written = policy.sample_reference(frozen, *prompt, key)
        else:
            written = policy.sample(trainable, frozen, *prompt, key)
        inputs = {"prompt": prompt[0], "prompt_mask": prompt[1]}
        inputs |= {"tokens": written.tokens, "mask": written.mask}
        reference = policy.reference(frozen, inputs)
        logprobs, values = written.logprobs, jnp.zeros_like(reference)
        if trainable is None:
            logprobs = reference
        elif evaluated:
            # Again, by the kernel that the update will use: its ratio is one where it starts.
            logprobs, values = policy.evaluate(trainable, frozen, inputs)
        ends = jnp.isin(written.tokens, jnp.asarray(policy.eos_ids)) & written.mask
        return Trajectory(
            inputs,
            written.mask,
            ends.any(axis=1),
            logprobs,
            reference,
            values,
            batch["category"],
        )

    return run


def _facts(trajectory: Trajectory, components: dict[str, Array]) -> dict[str, Array]:
    return components | {
        "kl": sequence_kl(trajectory.logprobs, trajectory.reference, trajectory.mask),
        "fluency": fluency(trajectory),
        "ended": trajectory.ended,
    }


def fluency(trajectory: Trajectory) -> Array:
    """Mean log-probability of a text's tokens under the reference, [B], in nats a token."""
    total = jnp.where(trajectory.mask, trajectory.reference, 0.0).sum(axis=1)
    return total / jnp.maximum(trajectory.mask.sum(axis=1), 1)


def _end_ids(tokenizer: Any, folder: Path) -> tuple[int, ...]:
    """Every token that ends an answer: the tokenizer's, and those of the generation settings."""
    from transformers import GenerationConfig

    ends = [tokenizer.eos_token_id]
    if (folder / "generation_config.json").is_file():
        more = GenerationConfig.from_pretrained(str(folder)).eos_token_id
        ends += more if isinstance(more, list) else [more]
    end_ids = tuple(sorted({end for end in ends if end is not None}))
    if not end_ids:
        raise UserError(f"{folder}: its tokenizer has no end token; set eos_token in its files")
    return end_ids
