"""Questions and captions: a LLaVA's own words against those of people."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from crossguard_jax.attacks.problem import Budget
from crossguard_jax.cmai.vetted import Vetting
from crossguard_jax.core import tasks
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Bool, Float, PRNGKeyArray
from crossguard_jax.data.records import LeftOut, rejection
from crossguard_jax.evals.benchmarks import Figures
from crossguard_jax.evals.tasks.answering import Aim, Answerer, Response, Rows, tokenize
from crossguard_jax.evals.tasks.counts import Counts, of_rows
from crossguard_jax.evals.tasks.rows import Benchmark, Item, usable
from crossguard_jax.guard.guard import Guard


class Words:
    """Rows that a LLaVA answers in its own words (an `attack.PerturbedTask`).

    Args:
        model: with its prompt.
        benchmark: the rows.
        form: what is asked; ``{text}`` stands for the row's own text.
        max_new_tokens: of an answer.
        batch_size: rows at once.
        left_out: takes the rows that cannot be asked.
        vetting: what its words are held against the pictures by; an attack that knows of it goes
            by it.

    Raises:
        UserError: no row can be.
    """

    lowest = 0.0
    name = ""

    def __init__(
        self,
        model: Guard,
        benchmark: Benchmark,
        form: str,
        max_new_tokens: int,
        batch_size: int,
        left_out: LeftOut,
        vetting: Vetting | None = None,
    ):
        items = usable(benchmark, model.encoder.levels, left_out)
        texts = [form.replace("{text}", item.record.text) for item in items]
        kept: list[Item] = []
        rows = []
        for item, row in zip(items, tokenize(model, texts, max_new_tokens), strict=True):
            if isinstance(row, UserError):
                left_out.add(rejection(item.record, str(row)))
            else:
                kept.append(item)
                rows.append(row)
        if not rows:
            raise UserError(f"no row can be asked; see {left_out.path}")
        self.texts = [item.record.text for item in kept]
        self.references = [item.references for item in kept]
        self.levels = np.stack([item.levels for item in kept])
        self._answerer = Answerer(model, rows, max_new_tokens, batch_size, vetting)
        self._vetting = vetting

    def respond(self, levels: UInt8[np.ndarray, "M 3 X X"], over: Rows) -> list[Response]:
        """What is said of each picture, in order."""
        return self._answerer.answers(levels, over)

    def aims(self, clean: Sequence[Response], most: int) -> list[list[Aim]]:
        """Answers to push each row away from: its own first, then what most people said; where its
        words are held against the picture, as many less one, and then another row's words to be
        said, which fit what they would fit."""
        aims = [
            [Aim(tokens) for tokens in dict.fromkeys([response.tokens, *self._by_people(people)])]
            for response, people in zip(clean, self.references, strict=True)
        ]
        if self._vetting is None:
            return [each[:most] for each in aims]
        donors = [clean[(row + len(clean) // 2) % len(clean)] for row in range(len(clean))]
        return [
            [
                *(goal._replace(held=self.held_before(row)) for goal in each[: max(most - 1, 1)]),
                Aim(donor.tokens, toward=True, held=self.held(donor, row)),
            ][:most]
            for row, (each, donor) in enumerate(zip(aims, donors, strict=True))
        ]

    def _by_people(self, people: Sequence[str]) -> list[tuple[int, ...]]:
        return [self._answerer.tokens(text) for text, _ in Counter(people).most_common()]

    def attack(
        self,
        levels: UInt8[np.ndarray, "M 3 X X"],
        over: Rows,
        aims: Sequence[Aim],
        key: PRNGKeyArray,
        budget: Budget,
        name: str = "pgd",
    ) -> UInt8[np.ndarray, "M 3 X X"]:
        """See `Answerer.attack`."""
        return self._answerer.attack(levels, over, aims, key, budget, name)

    def given(self, responses: Sequence[Response]) -> Bool[np.ndarray, " M"]:
        """All of them."""
        return np.ones(len(responses), bool)

    def held(self, response: Response, row: int) -> str:
        """What was asked."""
        return self.texts[row]

    def held_before(self, row: int) -> str | None:
        """The same before anything is said; None where it is not known."""
        return self.texts[row]

    def nothing(self, row: int) -> Response:
        """No words."""
        return Response("", ())

    def shown(self, response: Response) -> str:
        """What a reader sees."""
        return response.text


class Vqa(Words):
    """Questions, by VQA accuracy."""

    name = "VQA"

    def scores(self, responses: Sequence[Response]) -> Float[np.ndarray, " M"]:
        """Each row's accuracy, 0 to 1."""
        return tasks.vqa_scores(self._plain(responses), self.references)

    def figures(self, responses: Sequence[Response]) -> Figures:
        """``vqa_accuracy``."""
        return {"vqa_accuracy": tasks.vqa_accuracy(self._plain(responses), self.references)}

    def counts(self, responses: Sequence[Response]) -> Counts:
        """Of ``vqa_accuracy``."""
        return {"vqa_accuracy": of_rows(self.scores(responses))}

    def _plain(self, responses: Sequence[Response]) -> list[str]:
        # As LLaVA's own evaluation hands its answers in: where all people wrote the very same, the
        # official one compares it as written, and "Yes" would be wrong.
        return [tasks.normalize_answer(answer.text) for answer in responses]


class Captions(Words):
    """Captions, by CIDEr-D and BLEU-4."""

    name = "Captions"

    def held(self, response: Response, row: int) -> str:
        """What was said."""
        return response.text

    def held_before(self, row: int) -> str | None:
        """Nobody knows what will be said."""
        return None

    def scores(self, responses: Sequence[Response]) -> Float[np.ndarray, " M"]:
        """Each row's CIDEr-D, 0 to 10."""
        return tasks.cider_scores(self._plain(responses), self.references)

    def figures(self, responses: Sequence[Response]) -> Figures:
        """``cider`` and ``bleu4``."""
        plain = self._plain(responses)
        return {
            "cider": tasks.cider(plain, self.references),
            "bleu4": tasks.bleu4(plain, self.references),
        }

    def counts(self, responses: Sequence[Response]) -> Counts:
        """Of ``cider`` and ``bleu4``."""
        bleu = tasks.bleu_counts(self._plain(responses), self.references)
        return {"cider": of_rows(self.scores(responses)), "bleu4": bleu}

    def _plain(self, responses: Sequence[Response]) -> list[str]:
        return [caption.text for caption in responses]
