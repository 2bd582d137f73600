"""An immunized model: the model, its check, and what is done with what the check says."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crossguard_jax.attacks.logits import cross_entropy, margin_from
from crossguard_jax.attacks.problem import Outcome
from crossguard_jax.cmai import operating
from crossguard_jax.cmai import policy as policies
from crossguard_jax.cmai.mbat import Answers
from crossguard_jax.cmai.noise import content_keys
from crossguard_jax.cmai.policy import Decisions, Policy
from crossguard_jax.cmai.review import Flagged, ReviewQueue
from crossguard_jax.cmai.task import Task, TaskRequest
from crossguard_jax.cmai.threshold import Threshold
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, Int, PRNGKeyArray
from crossguard_jax.data.pipeline import Batch
from crossguard_jax.data.records import Record
from crossguard_jax.guard.encoding import Pictures, pictures_of
from crossguard_jax.guard.guard import Guard, raised, same_length
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.shapes import slots
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.hf.load import folder_name

_READER = ("read_ids", "read_mask")
_FLOOR = 1e-12  # of a probability, so that its logarithm has a gradient


@dataclass(frozen=True, eq=False)
class Immunized:
    """A model that answers, or does not, by how well text and picture agree.

    Example:
        >>> immunized = load_immunized("runs/quickstart/models/guard_immunized")
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
        secret: what the noise of a ``smooth`` branch is keyed by, beside a request's content.
    """

    task: Task
    trainable: Any
    frozen: Any
    policy: Policy = Policy()
    threshold: Threshold | None = None
    regime: float = 1.0
    secret: bytes = b""

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
        return self.task.trained(self.trainable, self.frozen)

    # As an attack sees it

    def rows(self, records: Sequence[Record], which: int | None = None) -> tuple[np.ndarray, Batch]:
        """Records as an attack takes them: pixels [B, 3, X, X] (or of several pictures each,
        [B, I, 3, X, X]), and what comes with them.

        Args:
            records: with labels.
            which: the picture of each row that may be perturbed, the last one where it has fewer;
                None is all.

        Raises:
            UserError: a record that cannot be encoded.
        """
        requests = []
        labels = [self.task.label(record) for record in records]
        encoded_rows = self.task.encode([r.text for r in records], [r.images for r in records])
        for record, label, encoded in zip(records, labels, encoded_rows, strict=True):
            if isinstance(encoded, UserError):
                raise UserError(f"{record.id}: {encoded}") from encoded
            requests.append(replace(encoded, label=label))
        return self.arrays(requests, which)

    def arrays(
        self, requests: Sequence[TaskRequest], which: int | None = None
    ) -> tuple[np.ndarray, Batch]:
        """Requests as an attack takes them; see `rows`."""
        arrays = self.task.stack(requests)
        if self.task.reader is not None:
            arrays["h_t"] = self._texts(arrays)
        for name in _READER:
            arrays.pop(name, None)
        pixels = arrays.pop("pixels")
        if which is None or pixels.ndim == 4:
            return pixels, arrays
        slot = np.minimum(which, np.maximum(arrays["pictures"] - 1, 0)).astype(np.int32)
        x = pixels[np.arange(len(pixels)), slot]
        return x, arrays | {"others": pixels, "slot": slot}

    def _texts(self, arrays: Batch) -> np.ndarray:
        """h_t of every row's windows, [B, T, D]."""
        parts = []
        for start in range(0, len(arrays["labels"]), 256):
            read = {name: arrays[name][start : start + 256] for name in _READER}
            parts.append(np.asarray(_read(self.task, self.params, read)))
        return np.concatenate(parts)

    def outcome(
        self, params: Any, rows: Any, x: Float[Array, "B *I C X Y"], key: PRNGKeyArray
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
        log_p = operating.moved(rows, jnp.log(jnp.maximum(p, _FLOOR)))
        labels = rows["labels"]
        return Outcome(cross_entropy(log_p, labels), margin_from(log_p, labels), caught(s_c))

    def accepted(
        self, params: Any, rows: Any, x: Float[Array, "B *I C X Y"], key: PRNGKeyArray
    ) -> Outcome:
        """The same of the plain answer alone: what any other branch would deal with is caught.

        An attack that is held to the last branch pays for one pass, whatever the others do.
        """
        return self._accepted(params, self._answers(params, rows, x))

    def shifted(
        self,
        params: Any,
        rows: Any,
        x: Float[Array, "B *I C X Y"],
        shift: Float[Array, "B L D"],
    ) -> Outcome:
        """`accepted`, with something added to the embeddings of the user's tokens; of rows that are
        read in one window."""
        return self._accepted(params, self._answers(params, rows, x, shift))

    def _accepted(self, params: Any, outputs: Answers) -> Outcome:
        cuts = params["cuts"]
        return Outcome(outputs.loss, outputs.margin, cuts[-1] - outputs.s_c if len(cuts) else None)

    def _answers(self, params: Any, rows: Any, x: Array, shift: Array | None = None) -> Answers:
        trainable, frozen = params["trainable"], params["frozen"]
        pixels, still = self.part.clean(rows, x)
        inputs = pixels, still if shift is None else shift
        outputs = self.task.answers(trainable, frozen, rows, inputs, self.regime)
        loss, margin = operating.judged(rows, outputs.loss, outputs.margin)
        return replace(outputs, loss=loss, margin=margin)

    def s_c(self, params: Any, rows: Any, x: Float[Array, "B *I C X Y"]) -> Float[Array, " B"]:
        """How well each row's text fits its pictures."""
        return self.part.s_c(params, rows, x)

    def predict(self, params: Any, inputs: Any, scale: Float[Array, " B"]) -> Float[Array, "B K"]:
        """`policy.Predict`: probabilities of the answers."""
        return self.part(params, inputs, scale)

    # As a user sees it

    def decide(
        self,
        records: Sequence[Record],
        *,
        queue: ReviewQueue | None = None,
        batch_size: int = 64,
    ) -> "Decided":
        """Answers requests as the policy says.

        Args:
            records: the requests; no label is looked at.
            queue: where flagged requests go; they are on the disk before this returns.
            batch_size: windows of the usual length to a forward pass, as of `Guard.score`.

        Raises:
            UserError: a request that cannot be encoded, or rows are flagged and there is no queue.
        """
        encoded = self.task.encode([r.text for r in records], [r.images for r in records])
        for record, request in zip(records, encoded, strict=True):
            if isinstance(request, UserError):
                raise UserError(f"{record.id}: {request}") from request
        requests = [request for request in encoded if isinstance(request, TaskRequest)]
        decided = self._decided(requests, batch_size)
        if decided.decisions.flagged.any():
            if queue is None:
                raise UserError("arm: the policy flags for review: give a queue")
            queue.add(self._flagged(records, decided.decisions, decided.s_c))
        return decided

    def _decided(self, requests: Sequence[TaskRequest], batch_size: int) -> "Decided":
        """What comes of requests; those of one shape are computed together."""
        shapes = [(slots(len(r.rows)), slots(len(r.levels)), slots(len(r.read))) for r in requests]
        order = sorted(range(len(requests)), key=shapes.__getitem__)
        keys = content_keys(self.secret, [r.text for r in requests], [r.levels for r in requests])
        scores = np.zeros(len(requests), np.float32)
        parts: list[tuple[list[int], Decisions]] = []
        for shape, same in itertools.groupby(order, key=shapes.__getitem__):
            group = list(same)
            for batch in self.task.plan([requests[i] for i in group], batch_size, shape[0]):
                places = [group[row] for row in batch.rows]
                filled = [*places, *[places[-1]] * (batch.size - len(places))]
                arrays = self.task.stack([requests[i] for i in filled], batch.length)
                inputs = {name: jnp.asarray(x) for name, x in arrays.items()}
                s_c = np.asarray(_scores(self.part, self.params, inputs))[: len(places)]
                scores[places] = s_c
                own = {name: x[: len(places)] for name, x in inputs.items()}
                decisions = policies.apply(
                    self.policy, self.part, self.params, own, s_c, keys[np.array(places)]
                )
                parts.append((places, decisions))
        fields = {}
        for name in ("branches", "answers", "rejected", "flagged", "passes"):
            values = np.concatenate([getattr(d, name) for _, d in parts])
            whole = np.empty_like(values)
            whole[np.concatenate([places for places, _ in parts])] = values
            fields[name] = whole
        windows = np.array([len(request.rows) for request in requests])
        return Decided(Decisions(**fields), scores, windows, self.task.labels)

    def score(
        self,
        images: Sequence[Pictures],
        texts: Sequence[str],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
    ) -> list[Verdict]:
        """One verdict a row, in order, as the policy says; otherwise as `Guard.score`."""
        return raised(self.score_each(images, texts, batch_size=batch_size, threshold=threshold))

    def score_each(
        self,
        images: Sequence[Pictures],
        texts: Sequence[object],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
    ) -> list[Verdict | UserError]:
        """As `score`, with the error of each row that has one in its place."""
        same_length(images, texts)
        shown = [pictures_of(each) for each in images]
        out: list[Verdict | UserError | TaskRequest] = [*self.task.encode(texts, shown)]
        places = [i for i, request in enumerate(out) if isinstance(request, TaskRequest)]
        if not places:
            return [each for each in out if isinstance(each, UserError)]
        requests = [request for request in out if isinstance(request, TaskRequest)]
        decided = self._decided(requests, batch_size)
        cut = self.settings.threshold if threshold is None else threshold
        for place, row in zip(places, range(len(places)), strict=True):
            out[place] = self._verdict(decided, row, cut)
        return [each for each in out if not isinstance(each, TaskRequest)]

    def _verdict(self, decided: "Decided", row: int, cut: float) -> Verdict | UserError:
        words, decisions = self.task.guard.settings.prompt, decided.decisions
        rejected, s_c = bool(decisions.rejected[row]), float(decided.s_c[row])
        p = 1.0 if rejected else float(decisions.answers[row, 1])
        if math.isnan(p):  # NaN compares as safe
            return UserError("the model's score is not a number; see crossguard doctor")
        return Verdict(
            p,
            p >= cut,
            cut,
            words.positive if p >= cut else words.negative,
            rejected,
            None if self.task.reader is None or math.isnan(s_c) else s_c,
            self.policy.branches[decisions.branches[row]].do,
            int(decided.windows[row]),
        )

    @property
    def settings(self) -> Settings:
        """The guard's."""
        return self.task.guard.settings

    @property
    def folder(self) -> Path:
        """The guard's."""
        return self.task.guard.folder

    @property
    def mesh(self) -> Mesh | None:
        """The guard's."""
        return self.task.guard.mesh

    @property
    def part(self) -> "Predictor":
        """What is compiled of it."""
        return Predictor(self.task, self.regime)

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


@dataclass(frozen=True)
class Decided:
    """What came of some requests.

    Attributes:
        decisions: of the policy, an entry a row; answers are probabilities [B, K].
        s_c: how well each text fits its pictures, [B].
        windows: in how many each text was read, [B].
        labels: the K answers.
    """

    decisions: Decisions
    s_c: Float[np.ndarray, " B"]
    windows: Int[np.ndarray, " B"]
    labels: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """Each row's answer; "" where it was rejected."""
        best = np.nan_to_num(self.decisions.answers, nan=-1.0).argmax(axis=1)
        return [
            "" if rejected else self.labels[i]
            for i, rejected in zip(best, self.decisions.rejected, strict=True)
        ]


@dataclass(frozen=True)
class Predictor:
    """The compiled part of an immunized model: equal ones share their programs, whatever their
    numbers.

    Attributes:
        task: the model as pure functions.
        regime: as in `Immunized`.
    """

    task: Task
    regime: float

    def __call__(self, params: Any, inputs: Any, scale: Float[Array, " B"]) -> Float[Array, "B K"]:
        """`policy.Predict`: probabilities of the answers."""
        full = self.regime == 1.0
        weight = 1.0 if full else self.regime + (1.0 - self.regime) * scale
        trainable, frozen = params["trainable"], params["frozen"]
        pixels = self.clean(inputs, inputs["pixels"])
        logits, _ = self.task.logits(trainable, frozen, inputs, pixels, weight)
        return jax.nn.softmax(logits)

    def s_c(self, params: Any, rows: Any, x: Float[Array, "B *I C X Y"]) -> Float[Array, " B"]:
        """How well each row's text fits its pictures; of rows with ``h_t``."""
        pixels, _ = self.clean(rows, x)
        _, h_v = self.task.see(params["trainable"], params["frozen"], pixels, self.regime)
        return self.task.s_c(params["trainable"], rows, h_v)

    def clean(self, rows: Any, x: Array) -> tuple[Array, Array]:
        """All pictures, those among them that an attack leaves alone, and no shift of the text."""
        if "slot" in rows:
            x = rows["others"].at[jnp.arange(len(x)), rows["slot"]].set(x)
        return x, jnp.zeros((1, 1, self.task.width), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _scores(part: Predictor, params: Any, inputs: Any) -> Array:
    rows = part.task.read(params["trainable"], params["frozen"], inputs)
    return part.s_c(params, rows, inputs["pixels"])


@functools.partial(jax.jit, static_argnums=0)
def _read(task: Task, params: Any, arrays: Any) -> Array:
    return task.read(params["trainable"], params["frozen"], arrays)["h_t"]
