"""Search for a few edits that raise a model's loss: greedy, beam or random, over batches."""

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from crossguard_jax.attacks.problem import AttackResult, Outcome
from crossguard_jax.attacks.text.edits import Edit, protected_words
from crossguard_jax.attacks.text.ranking import Ranked, ranked
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import PRNGKeyArray

STRATEGIES = ("greedy", "beam", "random")

Score = Callable[[list[str], np.ndarray, PRNGKeyArray], Outcome]
"""``score(texts, rows, key) -> Outcome`` of [n] fields. ``rows`` [n] says of which input each text
is a variant (whose picture and label it goes with); n is the same in every call."""

Keep = Callable[[list[str], list[str]], Sequence[bool] | np.ndarray]
"""``keep(originals, candidates) -> [n]``: which candidates still mean what their originals do."""


@dataclass(frozen=True)
class EditBudget:
    """What a search may do and spend.

    Attributes:
        edits: most edits of a text.
        candidates: most texts evaluated for each row and step (a step is an edit), drawn without
            replacement, as many of each kind of edit as there are.
        strategy: ``greedy`` goes on from each step's best text, ``beam`` from its best ``beams``,
            ``random`` from all that were drawn.
        beams: texts a beam keeps.
        batch: texts of one call of the model.

    Raises:
        UserError: a value that is no budget.
    """

    edits: int = 3
    candidates: int = 128
    strategy: str = "greedy"
    beams: int = 4
    batch: int = 64

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UserError(f"edits.strategy {self.strategy!r} is none of {', '.join(STRATEGIES)}")
        for name in ("edits", "candidates", "beams", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"edits.{name} {value!r}: a whole number above 0")

    @property
    def kept(self) -> int:
        """Texts a row goes on from."""
        return {"greedy": 1, "beam": self.beams, "random": self.candidates}[self.strategy]


@dataclass(frozen=True)
class EditResult(AttackResult):
    """What a search found; ``x_adv`` is a list of texts.

    Attributes:
        edits: of each text, [B].
        queries: texts evaluated for each row, [B].
    """

    edits: Any
    queries: Any


@dataclass
class _Row:
    """A text's search: where it goes on from, what it has seen, the best it found."""

    text: str
    fixed: list[str]
    beams: list[str]
    seen: set[str]
    best: tuple[bool, float, str, int] = field(init=False)
    queries: int = 0

    def draw(
        self, edits: Sequence[Edit], protected: Collection[str], n: int, rng: np.random.Generator
    ) -> list[str]:
        """At most ``n`` unseen texts one edit on, from all beams and kinds of edit alike."""
        pools = [list(edit(text)) for text in self.beams for edit in edits]
        for pool in pools:
            rng.shuffle(pool)
        order = rng.permutation(len(pools))
        drawn: list[str] = []
        for text in itertools.chain(*itertools.zip_longest(*(pools[i] for i in order))):
            if len(drawn) == n:
                break
            if text is None or text in self.seen:
                continue
            self.seen.add(text)
            if protected_words(text, protected) == self.fixed:
                drawn.append(text)
        return drawn

    def take(self, texts: list[str], scores: Ranked, edits: int, kept: int) -> None:
        """Learns how the texts of a step did."""
        self.queries += len(texts)
        order = scores.order()[::-1]
        self.beams = [texts[i] for i in order[:kept]]
        if texts:
            top = order[0]
            candidate = bool(scores.success[top]), float(scores.loss[top]), texts[top], edits
            self.best = max(self.best, candidate, key=lambda best: best[:2])


def edit_search(
    score: Score,
    texts: Sequence[str],
    key: PRNGKeyArray,
    budget: EditBudget,
    edits: Sequence[Edit],
    *,
    protected: Collection[str] = (),
    keep: Keep | None = None,
) -> EditResult:
    """Edits texts until they fool the model; a loop on the host, all rows' candidates batched.

    A text that fools it as it is stays so, with no edit; a row ends with its first success. What
    the search returns is judged under a key that it has not seen.

    Args:
        score: the model; a text's outcome depends on that text and its row alone.
        texts: what to edit.
        key: for the draws, and for whatever is random in the model. A row's draws do not depend
            on the other rows.
        budget: how many edits and candidates, and the strategy.
        edits: from `CHARACTER_EDITS` and `synonym`.
        protected: words that stay as they are (in any case).
        keep: a semantic constraint on candidates, such as that the intent is kept.

    Returns:
        The result. A row that fails has its best candidate, or its text where it had none.
    """
    small = {word.lower() for word in protected}
    rows = [_Row(text, protected_words(text, small), [text], {text}) for text in texts]
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    keys = iter(jax.random.split(key, budget.edits + 2))
    clean = _scores(score, [[text] for text in texts], next(keys), budget.batch)
    for row, scores in zip(rows, clean, strict=True):
        # The clean text is beaten by any candidate, unless it is a success itself.
        won = bool(scores.success[0])
        row.best, row.queries = (won, float(scores.loss[0]) if won else -np.inf, row.text, 0), 1
    for step in range(1, budget.edits + 1):
        drawn: list[list[str]] = [[] for _ in rows]
        for i, row in enumerate(rows):
            if not row.best[0]:
                rng = np.random.default_rng([*seed, step, i])
                drawn[i] = row.draw(edits, small, budget.candidates, rng)
        drawn = _kept(keep, texts, drawn)
        if not any(drawn):
            break
        all_scores = _scores(score, drawn, next(keys), budget.batch)
        for row, some, scores in zip(rows, drawn, all_scores, strict=True):
            row.take(some, scores, step, budget.kept)
    final = [row.best[2] for row in rows]
    judged = _scores(score, [[text] for text in final], next(keys), budget.batch)
    loss, success, rejected = (np.concatenate(values) for values in zip(*judged, strict=True))
    counts = np.array([(row.best[3], row.queries) for row in rows])
    return EditResult(final, loss, success, rejected, counts[:, 0], counts[:, 1])


def _kept(keep: Keep | None, texts: Sequence[str], drawn: list[list[str]]) -> list[list[str]]:
    """The candidates that the constraint lets pass."""
    if keep is None or not any(drawn):
        return drawn
    originals = [text for text, some in zip(texts, drawn, strict=True) for _ in some]
    passed = iter(np.asarray(keep(originals, list(itertools.chain(*drawn))), bool))
    return [[text for text in some if next(passed)] for some in drawn]


def _scores(
    score: Score, texts: Sequence[Sequence[str]], key: PRNGKeyArray, batch: int
) -> list[Ranked]:
    """The scores of each row's texts, evaluated together in full batches."""
    flat = list(itertools.chain(*texts))
    rows = np.repeat(np.arange(len(texts)), [len(some) for some in texts])
    parts = []
    for start in range(0, len(flat), batch):
        # The last batch is filled up with its own last text: a model compiles for one size.
        at = np.minimum(np.arange(start, start + batch), len(flat) - 1)
        outcome = score([flat[i] for i in at], rows[at], jax.random.fold_in(key, start))
        parts.append(ranked(outcome, (batch,)))
    fields = [np.concatenate(values)[: len(flat)] for values in zip(*parts, strict=True)]
    ends = np.cumsum([len(some) for some in texts])[:-1]
    return [Ranked(*one) for one in zip(*(np.split(f, ends) for f in fields), strict=True)]
