"""Retrieval with a CLIP: captions for pictures, and pictures for captions."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from crossguard_jax.attacks import projections
from crossguard_jax.attacks.problem import Budget
from crossguard_jax.cmai.vetted import Vetting
from crossguard_jax.core import tasks
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tasks.retrieval import KS
from crossguard_jax.core.typing import Array, Bool, Float, PRNGKeyArray
from crossguard_jax.data.records import LeftOut
from crossguard_jax.evals.benchmarks import Figures
from crossguard_jax.evals.tasks.answering import Part, Rows, in_batches
from crossguard_jax.evals.tasks.attack import searched
from crossguard_jax.evals.tasks.counts import Counts, of_rows
from crossguard_jax.evals.tasks.objectives import lead, retrieval_objective
from crossguard_jax.evals.tasks.rows import Benchmark, usable
from crossguard_jax.hf.clip import ClipEncoder
from crossguard_jax.io import images
from crossguard_jax.io.progress import Progress
from crossguard_jax.runtime import processes

CAPTIONS_EACH = 5
"""Captions of a picture that retrieval is measured on; COCO has up to seven."""

Vector = Float[np.ndarray, " D"]


class Retrieval:
    """Pictures and captions of one benchmark in a CLIP's space (an `attack.PerturbedTask`).

    Args:
        clip: both towers.
        benchmark: rows of captions.
        batch_size: pictures, or captions, at once.
        left_out: takes the rows that cannot be used.
        vetting: what a picture's nearest caption is held against it by; an attack that knows of it
            goes by it.

    Raises:
        UserError: fewer than two rows are left, so that there is nothing to choose from.
    """

    name = "Retrieval"
    lowest = -2.0

    def __init__(
        self,
        clip: ClipEncoder,
        benchmark: Benchmark,
        batch_size: int,
        left_out: LeftOut,
        vetting: Vetting | None = None,
    ):
        mean, std = clip.normalization
        items = usable(
            benchmark,
            lambda data, name: clip.picture(images.decode(data, name)) * std + mean,
            left_out,
        )
        if len(items) < 2:
            raise UserError(f"retrieval among {len(items)} pictures; see {left_out.path}")
        self.levels = np.stack([item.levels for item in items])
        self.texts = [item.record.text for item in items]
        self.references = [item.references[:CAPTIONS_EACH] for item in items]
        self._batch_size = min(batch_size, len(items))
        graphdef, self._state = nnx.split(clip.model, graph=False)
        objective = retrieval_objective(graphdef, mean, std, vetting)

        def embed(state: Any, levels: Array) -> Array:
            pixels = (levels.astype(jnp.float32) / 255 - mean) / std
            return nnx.merge(graphdef, state).embed_pictures(pixels)

        def attack(
            params: Any, rows: Any, levels: Array, key: PRNGKeyArray, budget: Budget, name: str
        ) -> Any:
            x = levels.astype(jnp.float32) / 255
            of_rows = functools.partial(objective, params, rows)
            result = searched(name, of_rows, x, key, budget)
            return projections.to_uint8(x, result.x_adv, budget)

        self._embed, self._attack = jax.jit(embed), jax.jit(attack, static_argnames="name")
        each = [len(captions) for captions in self.references]
        self._picture = np.repeat(np.arange(len(items)), each)
        captions = [t for own in self.references for t in own]
        self._captions = self._embedded(clip, captions)
        self._of_check: tuple[Any, ...] = ()
        if vetting is not None:
            self._of_check = vetting.read(captions)["h_t"], vetting.params

    def respond(self, levels: UInt8[np.ndarray, "M 3 X X"], over: Rows) -> list[Vector]:
        """Each picture's unit vector."""
        return list(self._vectors(levels))

    def scores(self, responses: Sequence[Vector]) -> Float[np.ndarray, " M"]:
        """The best right caption's cosine less the best wrong one's: above 0 where R@1 counts."""
        own = self._picture == np.arange(len(responses))[:, None]
        return np.asarray(lead(self._similarity(responses), own), np.float64)

    def aims(self, clean: Sequence[Vector], most: int) -> list[list[Vector]]:
        """Each row's own clean vector alone."""
        return [[vector] for vector in clean]

    def attack(
        self,
        levels: UInt8[np.ndarray, "M 3 X X"],
        over: Rows,
        aims: Sequence[Vector],
        key: PRNGKeyArray,
        budget: Budget,
        name: str = "pgd",
    ) -> UInt8[np.ndarray, "M 3 X X"]:
        """An attack away from the clean vectors (see `objectives.retrieval_objective`)."""
        params = self._state, self._captions, *self._of_check
        with Progress("attacking pictures", len(over), "picture") as progress:

            def one(numbered: tuple[int, Part]) -> UInt8[np.ndarray, "M 3 X X"]:
                i, (part, n) = numbered
                own = self._picture == over[part][:, None]
                rows = {"clean": np.stack([aims[p] for p in part]), "own": own}
                key_of = jax.random.fold_in(key, i)
                pictures = self._attack(params, rows, levels[part], key_of, budget, name=name)
                progress.update(n)
                return np.asarray(pictures)[:n]

            batches = enumerate(in_batches(len(over), self._batch_size))
            return np.concatenate(processes.spread(one, batches))

    def figures(self, responses: Sequence[Vector]) -> Figures:
        """``image_to_text.r1`` and so on, both ways, at 1, 5 and 10."""
        both_ways = tasks.retrieval_recalls(self._similarity(responses), self._picture)
        return {
            f"{way}.r{k}": estimate
            for way, recalls in both_ways._asdict().items()
            for k, estimate in recalls.items()
        }

    def counts(self, responses: Sequence[Vector]) -> Counts:
        """Of the same; captions of one picture are its row's."""
        to_text, to_image = tasks.retrieval_ranks(self._similarity(responses), self._picture)
        of_each = np.bincount(self._picture).astype(np.float64)
        hits = {k: np.bincount(self._picture, weights=to_image < k) for k in KS}
        return {f"image_to_text.r{k}": of_rows(to_text < k) for k in KS} | {
            f"text_to_image.r{k}": np.stack([hits[k], of_each], axis=1) for k in KS
        }

    def given(self, responses: Sequence[Vector]) -> Bool[np.ndarray, " M"]:
        """All of them."""
        return np.ones(len(responses), bool)

    def held(self, response: Vector, row: int) -> str:
        """What was found."""
        return self.shown(response)

    def nothing(self, row: int) -> Vector:
        """A vector that is as far as can be from the row's first caption."""
        return -self._captions[np.argmax(self._picture == row)]

    def shown(self, response: Vector) -> str:
        """The caption that a vector is nearest to."""
        captions = [t for own in self.references for t in own]
        return captions[int(np.argmax(self._captions @ response))]

    def _similarity(self, responses: Sequence[Vector]) -> Float[np.ndarray, "M N"]:
        return np.stack(responses) @ self._captions.T

    def _vectors(self, levels: UInt8[np.ndarray, "M 3 X X"]) -> Float[np.ndarray, "M D"]:

        def one(batch: Part) -> Float[np.ndarray, "M D"]:
            part, n = batch
            return np.asarray(self._embed(self._state, levels[part]))[:n]

        parts = processes.spread(one, in_batches(len(levels), self._batch_size))
        return np.concatenate(parts)

    def _embedded(self, clip: ClipEncoder, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        graphdef = nnx.split(clip.model, graph=False)[0]
        embed = jax.jit(lambda state, ids, mask: nnx.merge(graphdef, state).embed_texts(ids, mask))
        parts = []
        for part, n in in_batches(len(texts), self._batch_size):
            arrays = clip.texts([texts[i] for i in part])
            vectors = embed(self._state, arrays["input_ids"], arrays["attention_mask"])
            parts.append(np.asarray(vectors)[:n])
        return np.concatenate(parts)
