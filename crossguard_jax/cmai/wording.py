"""A LLaVA that answers in its own words: captions, and questions that any words may answer."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from crossguard_jax.attacks.joint import Inputs
from crossguard_jax.attacks.logits import unlikely
from crossguard_jax.cmai.consistency import Check
from crossguard_jax.cmai.mbat import Answers
from crossguard_jax.cmai.reader import Reader
from crossguard_jax.cmai.spoken import Expand, expanded
from crossguard_jax.cmai.task import Task
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.pipeline import Batch
from crossguard_jax.data.records import Record
from crossguard_jax.guard.decoding import Forced, answer_arrays, answer_tokens
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.mixture import fitting, listed_rows
from crossguard_jax.hf.export import ModelCard
from crossguard_jax.nn.lora import LoraScale
from crossguard_jax.runtime.placement import WHOLE, Share


class Wording(Task):
    """A `Task` whose loss is that of a sequence of tokens: what is to be said.

    Args:
        guard: as of `Task`.
        kind: ``captions``: the check holds a picture against what is said of it, since the same is
            asked of every picture; or ``vqa``: against what is asked.
        expand: a record to its rows: what is asked (text) and what is to be said (label).
        most: N, tokens of an answer at most.
        reader, check: as of `Task`.
    """

    def __init__(
        self,
        guard: Guard,
        kind: str,
        expand: Expand,
        most: int,
        reader: Reader | None = None,
        check: Check | None = None,
    ):
        super().__init__(guard, (), reader, check)
        self.labels = ()
        self.kind, self._expand, self._most = kind, expand, most

    def learnable(
        self, sources: Mapping[str, RecordSource], length: int = 0
    ) -> dict[str, RecordSource]:
        """A row for each thing that is to be said; see `Task.learnable`."""
        rows = expanded(sources, self._expand)
        if not length:
            return rows
        fits = partial(self.guard.encoder.fits, length=length - self._most)
        return fitting(rows, "", fits)

    def note(self, sources: Mapping[str, RecordSource], opened: Mapping[str, RecordSource]) -> None:
        """As of `Task`: rows are those of the records, whatever is asked of them."""
        self.guard.trained_on = listed_rows(opened)

    def save(self, trainable: Any, frozen: Any, folder: Path, card: ModelCard | None) -> None:
        """Writes the model, the adapter merged, as a LLaVA's folder."""
        self.trained(trainable, frozen).save_pretrained(folder, card=card)

    def batch(
        self,
        records: Sequence[Record],
        length: int,
        share: Share = WHOLE,
        buckets: bool = False,
    ) -> Batch:
        """As of `Task`, each row with what is to be said behind the prompt, and with
        `guard.decoding.answer_arrays`."""
        encoder = self.guard.encoder
        prompts, longest = encoder.training_rows(records, length - self._most, buckets)
        forced = [
            Forced.of(prompt, answer_tokens(encoder, record.label, self._most))
            for prompt, record in zip(prompts, records, strict=True)
        ]
        rows = [each.row for each in forced]
        arrays = self.arrays(records, rows, longest + self._most, share)
        return arrays | share.own(answer_arrays(forced, self._most))

    def alike(self, records: Sequence[Record], length: int) -> Sequence[Any]:
        """As of `Task`."""
        return super().alike(records, length - self._most)

    def checked_text(self, record: Record) -> str:
        """As of `Task`."""
        return record.label if self.kind == "captions" else record.text

    def label(self, record: Record) -> int:
        """No place in any list."""
        return 0

    def answers(
        self,
        trainable: Any,
        frozen: Any,
        batch: Any,
        inputs: Inputs,
        scale: LoraScale = 1.0,
        vocabulary: bool = False,
    ) -> Answers:
        """`mbat.Answer`: the loss is ``-log p`` of what is to be said in nats a token, among all
        tokens always; the margin is above 0 where greedy decoding says something else."""
        model, place, h_v = self.placing(trainable, frozen, inputs, scale)
        x = place(batch["input_ids"], batch["text_mask"])
        there, n = batch["attention_mask"] > 0, batch["tokens"].shape[1]
        logits = model.read_from(x, there, batch["start"], n, scale + self.merged)
        outcome = unlikely(logits, batch["tokens"], batch["answer_mask"])
        loss = outcome.loss / batch["answer_mask"].sum(axis=1)
        return Answers(loss, outcome.margin, self.s_c(trainable, batch, h_v), h_v)
