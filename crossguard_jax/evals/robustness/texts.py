"""Attacks on what a user types: edits, words, a suffix of tokens; and on the embeddings of that.

Rows that are right when clean are attacked, in groups, each group's results a file as soon as it is
made. What an attack returns is judged anew, as in the suite; of embeddings, which no text need
have, by the plain answer.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks import projections
from crossguard_jax.attacks.joint import Part
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.attacks.registry import EMBEDDINGS, SEARCHES, TOKENS, Registered
from crossguard_jax.attacks.suite import digest
from crossguard_jax.attacks.text.edit_search import EditBudget
from crossguard_jax.attacks.text.edits import CHARACTER_EDITS, synonym
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.data.records import Record
from crossguard_jax.evals.robustness import suffixes
from crossguard_jax.evals.robustness.rewriting import Rewriting, Sentences
from crossguard_jax.io.jsonl import read_json, write_atomic
from crossguard_jax.io.progress import Progress
from crossguard_jax.runtime import processes

FIELDS = ("loss", "margin", "detector", "edits", "queries", "similarity")


@dataclass(frozen=True)
class AttackedTexts:
    """What an attack on texts made of R rows.

    Attributes:
        attack: which one.
        rows: which, as positions in the whole set; those that were right when clean.
        right: clean answer right and not rejected, [B]; at a cut as of `fixed.FixedScores.right`.
        labels: the rows' answers, as places among the model's, [B].
        texts: what they have become; as they were where embeddings moved.
        values: `FIELDS` by name, [R]; NaN where there is none.
    """

    attack: Registered
    rows: np.ndarray
    right: np.ndarray
    labels: np.ndarray
    texts: list[str]
    values: dict[str, np.ndarray]

    @property
    def fooled(self) -> np.ndarray:
        """The answer is wrong, caught or not, [R]."""
        return self.values["margin"] > 0

    @property
    def won(self) -> np.ndarray:
        """Wrong and not caught, [R]."""
        return self.fooled & ~(self.values["detector"] > 0)


@dataclass(frozen=True)
class TextSuite:
    """Attacks on texts, and what they share.

    Attributes:
        attacks: by name; those of another route are no concern of it.
        norm, epsilon: of the picture's ball, where an attack moves the picture as well.
        batch_size: rows of a group, and texts of a forward pass.
        draws: evaluations that a judge takes the mean of.
        seed: of everything drawn.
        sentences: how similarity is measured; None: it is not.
        which: the picture of a row that moves, as of `Immunized.rows`; None: all.
    """

    attacks: dict[str, Registered]
    norm: str
    epsilon: float
    batch_size: int
    draws: int
    seed: int
    sentences: Sentences | None = None
    which: int | None = None

    def run(
        self,
        system: Immunized,
        records: Sequence[Record],
        folder: str | Path,
        at: tuple[float, float] | None = None,
    ) -> dict[str, AttackedTexts]:
        """Every attack; killed and called again, it goes on.

        Args:
            system: what is attacked.
            records: labelled.
            folder: of the results.
            at: where a guard cuts, as of `Rewriting`; an unsafe row that is rejected is right then.

        Raises:
            UserError: rows that an attack cannot be made on, or an attack without what it needs.
        """
        attacks = {k: a for k, a in self.attacks.items() if a.route in (TOKENS, EMBEDDINGS)}
        if not attacks:
            return {}
        rewriting, key = Rewriting(system, records, self.which, at), jax.random.key(self.seed)
        clean = rewriting.judged(
            [r.text for r in records], range(len(records)), key, self.draws, self.batch_size
        )
        right, rejected = ~(clean["margin"] > 0), clean["detector"] > 0
        labels = np.array(rewriting.labels)
        right = np.where((labels == 1) & (at is not None), right | rejected, right & ~rejected)
        rows, results = np.flatnonzero(right), {}
        whole = f"{digest(system.params)} {system.policy} {system.regime} {system.task.labels}"
        whole += f"{self.norm} {self.epsilon} {self.batch_size} {self.draws} {self.seed} "
        whole += f"{system.task.guard.encoder.settings} {self.sentences and self.sentences.name}"
        names = [hashlib.sha256(f"{r.id} {r.text}".encode()).hexdigest() for r in records]
        groups = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        # Of one shape, as the judge's: what reads the texts compiles once.
        filled = [np.resize(group, self.batch_size).tolist() for group in groups]
        given = [digest(rewriting.arrays([records[i].text for i in at], at)) for at in filled]
        for name, attack in attacks.items():
            facts = f"{whole} {attack} {names}"
            run = functools.partial(self._attacked, attack, rewriting, name)
            parts: list[dict[str, Any]] = []
            with Progress(name, len(groups), "group") as progress:
                for i, group in enumerate(groups):
                    make = functools.partial(run, group)
                    this = f"{facts} {group} {given[i]}"
                    parts.append(kept(Path(folder) / f"{name}-{i:05d}", this, make))
                    progress.update(1)
            texts = [text for part in parts for text in part["texts"]]
            values = {
                field: np.array([_number(v) for part in parts for v in part[field]], float)
                for field in FIELDS
            }
            results[name] = AttackedTexts(attack, rows, right, labels, texts, values)
        return results

    def _attacked(
        self, attack: Registered, rewriting: Rewriting, name: str, group: np.ndarray
    ) -> dict[str, Any]:
        """A group's results, as JSON values."""
        key = jax.random.fold_in(jax.random.key(self.seed), int(group[0]))
        search_key, judge_key = jax.random.split(key)
        clean = [rewriting.records[i].text for i in group]
        nothing = [math.nan] * len(group)
        if attack.route == EMBEDDINGS:
            values = self._moved(attack, rewriting, group, clean, search_key)
            return {"texts": clean, "edits": nothing, "queries": nothing, **values} | {
                "similarity": nothing
            }
        run = self._suffixed if attack.search == "gcg" else self._edited
        texts, edits, queries = run(attack, rewriting, group, clean, search_key)
        size = self.batch_size
        judged = rewriting.judged(texts, group.tolist(), judge_key, self.draws, size)
        similarity = self.sentences.similarity(texts, clean).tolist() if self.sentences else nothing
        values = {field: value.tolist() for field, value in judged.items()}
        return {
            "texts": texts,
            "edits": edits,
            "queries": queries,
            "similarity": similarity,
        } | values

    def _edited(
        self,
        attack: Registered,
        rewriting: Rewriting,
        group: np.ndarray,
        clean: list[str],
        key: PRNGKeyArray,
    ) -> tuple[list[str], list[int], list[int]]:
        options, least, sentences = attack.options, attack.options["similarity"], self.sentences
        edits, keep = [*CHARACTER_EDITS.values()], None
        if attack.name == "words" or least:
            if sentences is None:
                raise UserError(
                    f"attack {attack.name}: no sentence encoder; set attack.sentence to a folder "
                    "of one"
                )
            if attack.name == "words":
                texts = [record.text.lower() for record in rewriting.records]
                words = sorted({word for text in texts for word in re.findall(r"\w+", text)})
                edits = [synonym(sentences.neighbours(words, options["neighbours"]))]
            if least:
                keep = functools.partial(_alike, sentences, least)
        budget = EditBudget(
            attack.steps, options["candidates"], options["strategy"], batch=self.batch_size
        )

        def score(texts: list[str], rows: np.ndarray, key: PRNGKeyArray) -> Outcome:
            return rewriting.climbed(texts, group[rows], key)

        search = SEARCHES[attack.search].function
        result = search(score, clean, key, budget, edits, keep=keep)
        return list(result.x_adv), result.edits.tolist(), result.queries.tolist()

    def _suffixed(
        self,
        attack: Registered,
        rewriting: Rewriting,
        group: np.ndarray,
        clean: list[str],
        key: PRNGKeyArray,
    ) -> tuple[list[str], list[int], list[float]]:
        texts = suffixes.suffixed(attack, rewriting, group, clean, key, self.batch_size)
        # How many texts it tried is not counted: `cost` has the most that it may.
        return texts, [attack.options["tokens"]] * len(texts), [math.nan] * len(texts)

    def _moved(
        self,
        attack: Registered,
        rewriting: Rewriting,
        group: np.ndarray,
        clean: list[str],
        key: PRNGKeyArray,
    ) -> dict[str, Any]:
        """Embeddings, and with them the picture where the attack moves both."""
        rewriting.whole(clean, group.tolist(), "the text")
        filled = np.resize(group, self.batch_size)
        x, rows = rewriting.arrays([rewriting.records[i].text for i in filled], filled.tolist())
        system = rewriting.system
        moved = _embeddings(
            *(system, attack.search, self.norm, attack.steps, attack.restarts),
            *(system.params, rows, x, key),
            (jnp.float32(self.epsilon), jnp.float32(attack.options["text_epsilon"])),
        )
        return {name: np.asarray(value)[: len(group)].tolist() for name, value in moved.items()}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _embeddings(
    system: Immunized,
    name: str,
    norm: str,
    steps: int,
    restarts: int,
    params: Any,
    rows: Any,
    x: Array,
    key: PRNGKeyArray,
    radii: tuple[Array, Array],
) -> dict[str, Array]:
    """What comes of embeddings in their balls, and of the picture in its own where ``name`` is
    joint."""
    search_key, judge_key = jax.random.split(key)
    mask = rows["text_mask"][:, 0]
    shift = jnp.zeros((*mask.shape, system.task.width), jnp.float32)
    ball = Budget(radii[1], "l2", steps, restarts=restarts, low=-math.inf, high=math.inf)

    def outcome(x: Array, shift: Array, key: PRNGKeyArray) -> Outcome:
        outputs = system.shifted(params, rows, x, shift)
        return Outcome(outputs.margin, outputs.margin, outputs.detector)

    search: Callable[..., Any] = SEARCHES[name].function
    if name == "joint":
        budget = Budget(radii[0], norm, steps, restarts=restarts)
        parts = Part(budget), Part(ball, mask, per_token=True)
        moved = search(
            lambda both, key: outcome(both[0], both[1], key), (x, shift), search_key, parts
        ).x_adv
        x_adv, shift = projections.through_uint8(x, moved[0], budget), moved[1]
    else:
        alone = lambda shift, key: outcome(x, shift, key)  # noqa: E731
        x_adv, shift = x, search(alone, shift, search_key, ball, mask, per_token=True).x_adv
    judged = outcome(x_adv, shift, judge_key)
    detector = judged.detector
    if detector is None:
        detector = jnp.full_like(judged.margin, jnp.nan)
    return {"loss": judged.loss, "margin": judged.margin, "detector": detector}


def _alike(
    sentences: Sentences, least: float, originals: list[str], texts: list[str]
) -> np.ndarray:
    return sentences.similarity(texts, originals) >= least


def kept(place: Path, facts: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result from its file, or made and put there.

    Args:
        place: the file, without the fingerprint of ``facts`` that its name ends in.
        facts: all that settles the result.
        make: gives it, lists by name.
    """
    this = hashlib.sha256(facts.encode()).hexdigest()[:16]
    path = place.with_name(f"{place.name}-{this}.json")

    def read() -> dict[str, Any] | None:
        return read_json(path) if path.exists() else None

    part = processes.by_first(read)
    if part is None:
        part = {field: [_plain(v) for v in values] for field, values in make().items()}
        text = json.dumps(part) + "\n"

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text)

        processes.by_first(write)
    return part


def _plain(value: Any) -> Any:
    """As JSON has it, which has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)
