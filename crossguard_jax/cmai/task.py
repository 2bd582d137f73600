"""A LLaVA that answers with one of a few words, as CMAI asks it: pixels in [0, 1] to answers.

The guard is one (safe, unsafe), reasoning over pairs another (false, true), questions with a closed
list of answers a third. Which regime answers is ``scale``: 0 is the model as it was, 1 the
immunized one, anything between a blend per example (`nn.lora`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from crossguard_jax.cmai.answering import WINDOWED, Answering
from crossguard_jax.cmai.consistency import Check
from crossguard_jax.cmai.reader import Reader
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.pipeline import Batch
from crossguard_jax.data.records import Record
from crossguard_jax.guard.encoding import Encoder
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.mixture import answered, fitting, listed_rows
from crossguard_jax.guard.prompting import Row
from crossguard_jax.guard.shapes import Planned, bucket, ladder, length_step, plan, slots
from crossguard_jax.io.ahead import ahead
from crossguard_jax.io.images import Picture
from crossguard_jax.runtime.placement import WHOLE, Share

Item = TypeVar("Item")


@dataclass(frozen=True)
class TaskRequest:
    """A request as a task takes it.

    Attributes:
        text: the user's.
        rows: the prompt, or its windows.
        levels: of each picture, grey levels / 255, float32 [3, X, X].
        read: the text's windows, as the check's reader has them; one empty window without a reader.
        label: place of the right answer; 0 where nobody asks.
    """

    text: str
    rows: Sequence[Row]
    levels: Sequence[np.ndarray]
    read: Sequence[Sequence[int]]
    label: int = 0


class Task(Answering):
    """A guard's model on a closed list of answers, with what makes arrays of requests for it.

    Args:
        guard: its model carries the adapter that is trained or attacked.
        labels: answers, by the words they begin with; none are the prompt's two.
        reader: of texts, for S_c; None where nothing checks.
        check: with a reader, the check that it reads for.

    Raises:
        UserError: two answers that begin with the same token.
    """

    def __init__(
        self,
        guard: Guard,
        labels: Sequence[str] = (),
        reader: Reader | None = None,
        check: Check | None = None,
    ):
        prompt = guard.settings.prompt
        self.guard, self.labels = guard, tuple(labels or (prompt.negative, prompt.positive))
        label_ids = guard.encoder.first_tokens(self.labels)
        super().__init__(guard.model, label_ids, guard.encoder.normalization, reader, check)

    @property
    def folder(self) -> Path:
        """Where the model comes from."""
        return self.guard.folder

    @property
    def encoder(self) -> Encoder:
        """What makes rows of texts."""
        return self.guard.encoder

    def trained(self, trainable: Any, frozen: Any) -> Guard:
        """The model alone, the adapter fully on, for whoever wants plain scores."""
        model, base = self.model(trainable, frozen), self.guard
        return Guard(model, base.folder, base.settings, base.mesh, trained_on=base.trained_on)

    def learnable(
        self, sources: Mapping[str, RecordSource], length: int = 0
    ) -> dict[str, RecordSource]:
        """The rows that can be learned from, or held out: those that have an answer.

        Args:
            sources: of `open_sources`.
            length: tokens of a training row with one picture, into which a row must fit whole
                unless a part of it says the same; 0: however long.
        """
        sources = answered(sources, self.labels)
        if not length:
            return sources
        words = self.guard.settings.prompt
        # A part of a statement that is false may be true.
        harmless = words.negative if (words.negative, words.positive) == ("safe", "unsafe") else ""
        return fitting(sources, harmless, partial(self.encoder.fits, length=length))

    def note(self, sources: Mapping[str, RecordSource], opened: Mapping[str, RecordSource]) -> None:
        """Notes what is learned from, for the model's card: ``sources``, of the ``opened`` ones."""
        self.guard.trained_on = listed_rows(sources)

    def alike(self, records: Sequence[Record], length: int) -> Sequence[Any]:
        """What training rows are put with their like by; see `Encoder.alike`."""
        return self.encoder.alike(records, length)

    def batch(
        self,
        records: Sequence[Record],
        length: int,
        share: Share = WHOLE,
        buckets: bool = False,
    ) -> Batch:
        """Records as arrays to learn from: of a long text, one window.

        Args:
            records: B, with labels, of all processes, since they say in which shapes.
            length: tokens of a row with one picture (see `Encoder.training_rows`).
            share: the rows that are made; pictures of others are not decoded.
            buckets: as of `Encoder.training_rows`.

        Returns:
            As `stack`, without the axes of windows.

        Raises:
            UserError: a label that is no answer, or a row that cannot be encoded.
        """
        rows, longest = self.guard.encoder.training_rows(records, length, buckets)
        return self.arrays(records, rows, longest, share)

    def arrays(
        self, records: Sequence[Record], rows: Sequence[Row], length: int, share: Share
    ) -> Batch:
        """Records and their windows as arrays, rows of ``length`` tokens; see `batch`."""
        most = max(len(record.images) for record in records)
        places = share.rows(len(records)).tolist()
        own, requests = [records[i] for i in places], []
        texts = [self.checked_text(record) for record in own]
        read = self.reader.windows(texts) if self.reader else [[[]]] * len(own)
        for place, record, windows in zip(places, own, read, strict=True):
            levels, label = self._levels(record), self.label(record)
            requests.append(TaskRequest(record.text, [rows[place]], levels, windows[:1], label))
        arrays = self.stack(requests, length, most)
        return {k: v[:, 0] if k in WINDOWED else v for k, v in arrays.items()}

    def checked_text(self, record: Record) -> str:
        """The text of a record that its picture is to fit, by the check."""
        return record.text

    def encode(
        self, texts: Sequence[object], shown: Sequence[Sequence[Picture]]
    ) -> list[TaskRequest | UserError]:
        """Each request whole, in windows where its text is long, or what is wrong with it.

        Args:
            texts: one a request; it may be empty beside a picture.
            shown: the pictures of each.
        """
        encoder = self.guard.encoder
        rows_of = encoder.windows(texts, [*map(len, shown)])
        read = self.reader.windows([*map(str, texts)]) if self.reader else [[[]]] * len(texts)

        def request(i: int) -> TaskRequest | UserError:
            rows = rows_of[i]
            if isinstance(rows, UserError):
                return rows
            if len(rows) > 1 and len(self.labels) != 2:
                return UserError("the text is longer than is read at once; shorten it")
            try:
                levels = [encoder.levels(picture) for picture in shown[i]]
            except UserError as error:
                return error
            return TaskRequest(str(texts[i]), rows, levels, read[i])

        return list(ahead(request, range(len(texts))))

    def plan(self, requests: Sequence[TaskRequest], batch_size: int, windows: int) -> list[Planned]:
        """Requests as batches of few shapes; see `guard.shapes.plan`.

        Args:
            requests: that are read in as many windows and show as many pictures.
            batch_size: windows of the usual length to a forward pass.
            windows: of a request.
        """
        encoder = self.guard.encoder
        return plan(
            [max(len(row.ids) for row in request.rows) for request in requests],
            [len(request.levels) for request in requests],
            range(len(requests)),
            ladder(encoder.settings.max_length, encoder.tokens_per_image, length_step()),
            max(batch_size // windows, 1) * encoder.usual,
        )

    def stack(self, requests: Sequence[TaskRequest], length: int = 0, most: int = 0) -> Batch:
        """Requests as arrays. The number W of windows, I of pictures and T of the check's windows
        are powers of two; what is missing repeats the last one, and the number of pictures is told.

        Args:
            requests: B.
            length: L; 0 is as long as the longest window needs.
            most: pictures that there is room for at least.

        Returns:
            ``input_ids``, ``attention_mask`` [B, W, L]; ``text_mask`` [B, W, L], the user's own
            tokens, which an attack on the text may move; ``pixels`` float32 in [0, 1], [B, 3, X, X]
            if I is 1 or else [B, I, 3, X, X]; ``pictures`` int32 [B]; ``has_picture`` [B];
            ``labels`` int32 [B]; with a reader ``read_ids``, ``read_mask`` [B, T, L_t].
        """
        encoder = self.guard.encoder
        rows = _repeated([request.rows for request in requests])
        longest = max(len(row.ids) for row in rows)
        length = length or bucket(longest, encoder.settings.max_length)
        flat = encoder.pad(rows, length)
        flat["text_mask"] = np.zeros(flat["input_ids"].shape, bool)
        for mask, row in zip(flat["text_mask"], rows, strict=True):
            mask[slice(*row.user)] = True
        counts = [len(request.levels) for request in requests]
        side = encoder.image_size
        pixels = np.zeros((len(requests), slots(max(*counts, most)), 3, side, side), np.float32)
        for of_request, request in zip(pixels, requests, strict=True):
            for place, levels in enumerate(request.levels):
                of_request[place] = levels
        arrays: Batch = {
            "pixels": pixels[:, 0] if pixels.shape[1] == 1 else pixels,
            "pictures": np.array(counts, np.int32),
            "has_picture": np.array(counts) > 0,
            "labels": np.array([request.label for request in requests], np.int32),
        }
        if self.reader is not None:
            ids, mask = self.reader.pad(_repeated([request.read for request in requests]))
            flat |= {"read_ids": ids, "read_mask": mask}
        b = len(requests)
        return arrays | {name: x.reshape(b, -1, x.shape[-1]) for name, x in flat.items()}

    def _levels(self, record: Record) -> list[np.ndarray]:
        encoder = self.guard.encoder
        return [encoder.levels(image, f"the picture of {record.id}") for image in record.images]

    def label(self, record: Record) -> int:
        """The place of a record's label among the answers.

        Raises:
            UserError: it is none.
        """
        if record.label not in self.labels:
            choices = ", ".join(self.labels[:20])
            raise UserError(f"row {record.id}: label {record.label!r} is none of {choices}")
        return self.labels.index(record.label)


def _repeated(each: Sequence[Sequence[Item]]) -> list[Item]:
    """As many of each, a power of two, the last one repeated; one after the other."""
    size = slots(max(map(len, each)))
    return [item for some in each for item in [*some, *[some[-1]] * (size - len(some))]]
