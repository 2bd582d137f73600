"""An immunized model: the model, its check, and what is done with what the check says."""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossguard_jax.attacks.logits import cross_entropy, margin_from
from crossguard_jax.attacks.problem import Outcome
from crossguard_jax.cmai import policy as policies
from crossguard_jax.cmai.mbat import Answers
from crossguard_jax.cmai.noise import row_keys
from crossguard_jax.cmai.policy import Decisions, Policy
from crossguard_jax.cmai.review import Flagged, ReviewQueue
from crossguard_jax.cmai.storage import SETTINGS, load_check, save_check
from crossguard_jax.cmai.task import Reader, Task
from crossguard_jax.cmai.threshold import Threshold
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import named_leaves
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray
from crossguard_jax.data.pipeline import Batch
from crossguard_jax.data.records import Record
from crossguard_jax.guard.batches import bucket
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf.export import ModelCard
from crossguard_jax.hf.load import folder_name
from crossguard_jax.io.jsonl import read_json, write_atomic

FILE = "cmai.json"
CHECK = "consistency"  # a folder of its own: a model's loaders take every safetensors beside it
_READER = ("read_ids", "read_mask")
_FLOOR = 1e-12  # of a probability, so that its logarithm has a gradient


@dataclass(frozen=True, eq=False)
class Immunized:
    """A model that answers, or does not, by how well text and picture agree.

    Example:
        >>> immunized = Immunized.from_pretrained("runs/quickstart/models/guard_immunized")
        >>> found = immunized.decide(records)
        >>> found.decisions.rejected, found.s_c

    Attributes:
        task: the model as pure functions.
        trainable: its adapter, and the check's numbers.
        frozen: the rest.
        policy: of ARM at inference; by default it answers everything.
        threshold: what the check's cut rests on; None without a check.
        regime: weight of the adapter where nothing is suspicious; a ``robust`` branch goes from
            there to 1.
    """

    task: Task
    trainable: Any
    frozen: Any
    policy: Policy = Policy()
    threshold: Threshold | None = None
    regime: float = 1.0

    @classmethod
    def of(cls, guard: Guard, labels: Sequence[str] = ()) -> "Immunized":
        """A model as it is, with no defence: what others are compared with."""
        task = Task(guard, labels)
        return cls(task, {"adapters": task.adapters}, {"model": task.frozen})

    @property
    def params(self) -> dict[str, Any]:
        """All numbers, as `outcome` takes them: the policy's cuts among them, so that models of one
        shape compile once."""
        return {"trainable": self.trainable, "frozen": self.frozen, "cuts": self.policy.cuts}

    @property
    def guard(self) -> Guard:
        """The model alone, the adapter fully on, for whoever wants plain scores."""
        task = self.task
        model = task.model(self.trainable, self.frozen)
        return Guard(model, task.guard.folder, task.guard.settings, task.guard.mesh)

    # As an attack sees it

    def rows(self, records: Sequence[Record], length: int = 0) -> tuple[np.ndarray, Batch]:
        """Records as an attack takes them: pixels [B, 3, X, X], and what comes with them.

        Args:
            records: with labels.
            length: of the padded prompts in tokens, longer texts are cut; 0 is as long as the
                longest needs.
        """
        length = length or self._longest(records)
        parts = []
        for start in range(0, len(records), 256):
            part = self.task.batch(records[start : start + 256], length)
            if self.task.reader is not None:
                read = jax.jit(self.task.read)(self.trainable, self.frozen, part)
                part |= {"h_t": np.asarray(read["h_t"])}
            parts.append(part)
        arrays = {
            name: np.concatenate([part[name] for part in parts])
            for name in parts[0]
            if name not in _READER
        }
        return arrays.pop("pixels"), arrays

    def _longest(self, records: Sequence[Record]) -> int:
        guard = self.task.guard
        rows, _ = guard.encoder.training_rows(records, guard.settings.max_length)
        return bucket(max(len(row.ids) for row in rows), guard.settings.max_length)

    def outcome(
        self, params: Any, rows: Any, x: Float[Array, "B C X Y"], key: PRNGKeyArray
    ) -> Outcome:
        """`attacks.named.RowObjective`: right or wrong by what the policy answers, caught by what
        it rejects."""
        policy = self.policy.at(params["cuts"])
        caught = policy.caught if policy.rejects else lambda scores: None
        if policy.plain:
            outputs = self._answers(params, rows, x)
            return Outcome(outputs.loss, outputs.margin, caught(outputs.s_c))
        s_c = self.s_c(params, rows, x)
        keys = jax.random.split(key, x.shape[0])
        inputs = rows | {"pixels": x}
        _, p = policies.answer_all(policy, self.predict, params, inputs, s_c, keys)
        log_p = jnp.log(jnp.maximum(p, _FLOOR))
        labels = rows["labels"]
        return Outcome(cross_entropy(log_p, labels), margin_from(log_p, labels), caught(s_c))

    def accepted(
        self, params: Any, rows: Any, x: Float[Array, "B C X Y"], key: PRNGKeyArray
    ) -> Outcome:
        """The same of the plain answer alone: what any other branch would deal with is caught.

        An attack that is held to the last branch pays for one pass, whatever the others do.
        """
        outputs = self._answers(params, rows, x)
        cuts = params["cuts"]
        return Outcome(outputs.loss, outputs.margin, cuts[-1] - outputs.s_c if len(cuts) else None)

    def _answers(self, params: Any, rows: Any, x: Array) -> Answers:
        trainable, frozen = params["trainable"], params["frozen"]
        return self.task.answers(trainable, frozen, rows, self._clean(x), self.regime)

    def s_c(self, params: Any, rows: Any, x: Float[Array, "B C X Y"]) -> Float[Array, " B"]:
        """How well each row's text fits its picture."""
        trainable = params["trainable"]
        _, h_v = self.task.see(trainable, params["frozen"], x, self.regime)
        return self.task.s_c(trainable, rows, h_v)

    def predict(self, params: Any, inputs: Any, scale: Float[Array, " B"]) -> Float[Array, "B K"]:
        """`policy.Predict`: probabilities of the answers."""
        full = self.regime == 1.0
        weight = 1.0 if full else self.regime + (1.0 - self.regime) * scale
        trainable, frozen = params["trainable"], params["frozen"]
        pixels = self._clean(inputs["pixels"])
        logits, _ = self.task.logits(trainable, frozen, inputs, pixels, weight)
        return jax.nn.softmax(logits)

    def _clean(self, x: Array) -> tuple[Array, Array]:
        return x, jnp.zeros((1, 1, self.task.width), jnp.float32)

    # As a user sees it

    def decide(
        self,
        records: Sequence[Record],
        *,
        key: PRNGKeyArray | None = None,
        queue: ReviewQueue | None = None,
        batch_size: int = 64,
        length: int = 0,
    ) -> "Decided":
        """Answers requests as the policy says.

        Args:
            records: the requests; their ids must differ, and no label is looked at.
            key: of the noise of a ``smooth`` branch; key 0 by default.
            queue: where flagged requests go; they are on the disk before this returns.
            batch_size: rows to a forward pass.
            length: as in `rows`.

        Raises:
            UserError: two ids are the same, or rows are flagged and there is no queue.
        """
        key = jax.random.key(0) if key is None else key
        first = self.task.labels[0]
        labelled = [r if r.label in self.task.labels else replace(r, label=first) for r in records]
        x, rows = self.rows(labelled, length)
        ids = [record.id for record in records]
        keys = row_keys(key, ids)
        scores, parts = [], []
        for start in range(0, len(records), batch_size):
            here = slice(start, start + batch_size)
            arrays = rows | {"pixels": x}
            inputs = {name: jnp.asarray(value[here]) for name, value in arrays.items()}
            s_c = np.asarray(_scores(self, self.params, inputs))
            scores.append(s_c)
            decisions = policies.apply(
                self.policy,
                self.predict,
                self.params,
                inputs,
                s_c,
                keys[here],
            )
            if decisions.flagged.any():
                if queue is None:
                    raise UserError("arm: the policy flags for review: give a queue")
                queue.add(self._flagged(records[here], decisions, s_c))
            parts.append(decisions)
        fields = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("branches", "answers", "rejected", "flagged", "passes")
        }
        return Decided(Decisions(**fields), np.concatenate(scores), self.task.labels)

    def _flagged(
        self, records: Sequence[Record], decisions: Decisions, s_c: Float[np.ndarray, " B"]
    ) -> Iterator[Flagged]:
        """The flagged rows of a batch, as the queue has them."""
        positive = self.task.guard.settings.prompt.positive
        column = self.task.labels.index(positive) if positive in self.task.labels else None
        for i in np.flatnonzero(decisions.flagged).tolist():
            branch = self.policy.branches[decisions.branches[i]]
            yield Flagged(
                records[i],
                policies.reason(branch, float(s_c[i])),
                None if column is None else float(decisions.answers[i, column]),
                float(s_c[i]),
                branch.do,
                folder_name(self.task.guard.folder),
            )

    def save_pretrained(self, path: str | Path, card: ModelCard | None = None) -> None:
        """Writes a folder that transformers loads as the robust model, and in it the check's.

        Raises:
            UserError: the adapter is merged here, and the policy blends it or the check reads texts
                without it.
        """
        if self.regime != 1.0 or any(b.do == "robust" for b in self.policy.branches):
            raise UserError(
                "arm: a policy that blends the adapter cannot be saved merged; take out the robust "
                "branch, or keep the run's folder"
            )
        layers = [name for name, _ in named_leaves(self.trainable["adapters"])]
        itself = self.task.reader is not None and self.task.reader.graphdef is None
        if itself and any(name.startswith("language_model.") for name in layers):
            raise UserError(
                "cmcv.text_source language_model: the check reads with the model as it was, which "
                "is gone where its adapter is merged; take clip, or keep the run's folder"
            )
        folder = Path(path)
        self.guard.save_pretrained(folder, card=card)
        if self.task.reader is not None:
            save_check(folder / CHECK, self.task.check(self.trainable), self.threshold)
        branches = [policies.as_config(branch) for branch in self.policy.branches[:-1]]
        path = self.task.reader.path if self.task.reader else ""
        facts = {"labels": self.task.labels, "text_path": path, "branches": branches}
        write_atomic(folder / FILE, json.dumps(facts, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "Immunized":
        """What `save_pretrained` wrote; a folder without a check is a model as it is.

        Args:
            path: the folder.
            options: of `Guard.from_pretrained`.

        Raises:
            UserError: whatever is wrong with the folder.
        """
        guard = Guard.from_pretrained(path, **options)
        folder = Path(path)
        if not (folder / FILE).is_file():
            return cls.of(guard)
        facts = read_json(folder / FILE)
        if not (folder / CHECK / SETTINGS).is_file():
            return cls.of(guard, facts["labels"])
        check, threshold = load_check(folder / CHECK)
        source = check.config.text_source
        reader = Reader(guard, source, facts["text_path"], guard.settings.max_length)
        task = Task(guard, facts["labels"], reader, check)
        policy = Policy.from_config({"branches": facts["branches"]})
        trainable = {"adapters": task.adapters, "check": nnx.split(check, graph=False)[1]}
        return cls(task, trainable, task.frozen_parts, policy, threshold)


@dataclass(frozen=True)
class Decided:
    """What came of some requests.

    Attributes:
        decisions: of the policy, an entry a row; answers are probabilities [B, K].
        s_c: how well each text fits its picture, [B].
        labels: the K answers.
    """

    decisions: Decisions
    s_c: Float[np.ndarray, " B"]
    labels: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """Each row's answer; "" where it was rejected."""
        best = np.nan_to_num(self.decisions.answers, nan=-1.0).argmax(axis=1)
        return [
            "" if rejected else self.labels[i]
            for i, rejected in zip(best, self.decisions.rejected, strict=True)
        ]


@functools.partial(jax.jit, static_argnums=0)
def _scores(immunized: Immunized, params: Any, inputs: Any) -> Array:
    return immunized.s_c(params, inputs, inputs["pixels"])
