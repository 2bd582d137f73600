"""The public `Guard`: a LLaVA folder that gives verdicts."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules, batch_sharding, shardings
from crossguard_jax.core.typing import Array, Float, Int
from crossguard_jax.data.prompts import PromptTemplate, get_template
from crossguard_jax.guard.batches import arrange, fill, in_place
from crossguard_jax.guard.encoding import Encoder, Pictures, pictures_of
from crossguard_jax.guard.prompting import Row
from crossguard_jax.guard.settings import SETTINGS, Settings
from crossguard_jax.guard.shapes import Planned, filled, ladder, length_step, plan
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.hf.export import ModelCard, save_model
from crossguard_jax.hf.load import folder_name, load_model, resolve_folder
from crossguard_jax.hf.peft import load_adapter, read_adapter_config, save_adapter
from crossguard_jax.hf.pictures import Processor
from crossguard_jax.hf.towers import with_tower
from crossguard_jax.hf.trained import TrainedRow, read_training_data
from crossguard_jax.io.ahead import ahead
from crossguard_jax.nn import lora, verdict
from crossguard_jax.nn.llava import Llava
from crossguard_jax.runtime import processes
from crossguard_jax.runtime.placement import put

TEXTS_AT_ONCE = 64
"""Texts that a thread tokenizes together."""

Window = tuple[int, int]
"""A request's place, and that of a window in it."""

Read = Callable[[dict[str, Any]], Array]
"""``read(batch) -> [B, ...]``, a batch as `nn.verdict` has it; what it starts is not waited for."""


class Guard:
    """Scores requests: p(unsafe | picture, text) in one forward pass.

    Example:
        >>> guard = Guard.from_pretrained("runs/quickstart/models/guard")
        >>> guard.score(["kitchen.png"], ["can i touch the red one?"])[0].p_unsafe

    Args:
        model: with or without an adapter.
        folder: the Hub folder that its config, tokenizer and processor come from.
        settings: prompt, threshold, length limit.
        mesh: where batches go; None is the first device.
        rules: logical to mesh axes.
        trained_on: rows that the adapter learned from, for the card of an export.
    """

    def __init__(
        self,
        model: Llava,
        folder: str | Path,
        settings: Settings,
        mesh: Mesh | None = None,
        rules: Rules = DEFAULT_RULES,
        trained_on: Sequence[TrainedRow] = (),
    ):
        self.model, self.folder, self.mesh, self.rules = model, Path(folder), mesh, rules
        self.trained_on = trained_on
        self.encoder = Encoder(folder, model.config, settings)
        self.settings = self.encoder.settings
        graphdef, adapters, frozen = lora.split(model)
        if mesh is not None:
            # The base is there; an adapter that was read or made beside it may not be.
            adapters = jax.device_put(adapters, shardings(adapters, mesh, rules))
        self._parts = graphdef, adapters, frozen

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        adapter: str | Path | None = None,
        dtype: str | None = "float32",
        mesh: Mesh | None = None,
        *,
        prompt: str | PromptTemplate | None = None,
        threshold: float | None = None,
        picture: str | None = None,
        rules: Rules = DEFAULT_RULES,
        vision_tower: str | Path = "",
        **options: Any,
    ) -> "Guard":
        """A guard from a Hub folder.

        Args:
            path: a LLaVA folder (a base, or a merged guard), or a PEFT adapter folder that names
                its base; ``toy://llava`` is the small one that comes with the package.
            adapter: a PEFT adapter folder to lay over ``path``.
            dtype: of the base's weights and the arithmetic; adapters stay float32.
            mesh: where to put it; None is the first device.
            prompt: a template or a built-in one's name; None is what the folder says.
            threshold: None is what the folder says.
            picture: "pad" or "crop" one that is no square, "" as the folder's own processor does;
                None is what the folder says.
            rules: logical to mesh axes.
            vision_tower: a folder whose picture tower takes the place of the model's own (see
                `hf.towers.with_tower`); "" leaves it.
            options: ``remat`` and ``attention`` (see `hf.configs.read_config`).

        Raises:
            UserError: whatever is wrong with the folder, in one message.
        """
        folder = resolve_folder(path)
        if (folder / "adapter_config.json").is_file():
            if adapter is not None:
                raise UserError(f"{folder} is an adapter itself; give its base as the path")
            folder, adapter = _base_of(folder), folder
        settings = Settings.read(folder)
        model = load_model(folder, dtype, mesh, rules, **options)
        if not isinstance(model, Llava):
            raise UserError(f"{folder}: a guard is a LLaVA, this is a {type(model).__name__}")
        if vision_tower:
            model = with_tower(model, vision_tower, dtype, mesh, rules)
        if adapter is not None:
            model = load_adapter(model, adapter)
            if not is_plain(adapter):
                settings = Settings.read(Path(adapter))
        if prompt is not None:
            template = get_template(prompt) if isinstance(prompt, str) else prompt
            settings = replace(settings, prompt=template)
        if threshold is not None:
            settings = replace(settings, threshold=threshold)
        if picture is not None:
            settings = replace(settings, picture=picture)
        rows = read_training_data(adapter) if adapter is not None else ()
        return cls(model, folder, settings, mesh, rules, rows)

    @property
    def label_ids(self) -> tuple[int, int]:
        """Token ids of the (negative, positive) label: (safe, unsafe)."""
        return self.encoder.label_ids

    @property
    def parts(self) -> tuple[Any, Any, Any]:
        """`lora.split` of the model: what a program of one's own is handed."""
        return self._parts

    def encode(self, images: Sequence[Pictures], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What transformers' LLaVA processor makes of the guard's prompts.

        Args:
            images: one a row, or a list of several; None for a row without a picture.
            texts: one a row.

        Returns:
            ``input_ids`` and ``attention_mask``, int32 [B, L] padded on the right, and
            ``pixel_values``, float32 [M, 3, X, X] of the rows' M pictures, in order (left out when
            M is 0).

        Raises:
            UserError: no lists, lengths differ, a text that is no str, is empty beside no picture,
                or is longer than the model reads at once, a picture that does not decode.
        """
        same_length(images, texts)
        shown = [pictures_of(each) for each in images]
        rows = []
        for i, row in enumerate(self.encoder.whole(texts, [*map(len, shown)])):
            if isinstance(row, UserError):
                raise UserError(f"row {i}: {row}") from row
            rows.append(row)
        batch = self.encoder.pad(rows, max(len(row.ids) for row in rows))
        pictures = [picture for each in shown for picture in each]
        return batch | ({"pixel_values": self.encoder.pixels(pictures)} if pictures else {})

    def logits(
        self,
        input_ids: Int[Array | np.ndarray, "B L"],
        pixel_values: Float[Array | np.ndarray, "M C X Y"] | None = None,
        attention_mask: Int[Array | np.ndarray, "B L"] | None = None,
    ) -> Float[Array, "B L V"]:
        """LLaVA's own next-token logits, float32, as transformers' forward pass gives them.

        ``pixel_values`` holds the batch's pictures in the order in which their tokens occur.

        Raises:
            UserError: picture tokens and pictures do not fit together.
        """
        ids = np.asarray(input_ids)
        mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
        here = ids == self.model.config.image_token_id
        if pixel_values is None and here.any():
            raise UserError("input_ids has picture tokens, but there are no pixel_values")
        index = None if pixel_values is None else _index(here, len(pixel_values), self.model)
        return _logits(self._parts[0], self._parts[1:], ids, pixel_values, mask.astype(bool), index)

    def score(
        self,
        images: Sequence[Pictures],
        texts: Sequence[str],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
    ) -> list[Verdict]:
        """One verdict a row, in order; a row's verdict does not depend on the others.

        A text that is longer than the guard was trained for is read in overlapping windows, and the
        worst of them counts.

        Args:
            images: one a row, or a list of several; None for a row without a picture.
            texts: one a row; it may be empty beside a picture.
            batch_size: windows of the usual length (see `Encoder.usual`) to a forward pass; of
                shorter ones more, so that the tokens are as many, of longer ones fewer.
            threshold: the least p_unsafe that is unsafe; None is the guard's own.

        Raises:
            UserError: as `encode`, but for the length: a text of too many windows.
        """
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
        cut = self.settings.threshold if threshold is None else threshold
        outputs = self.read_each(images, texts, self._p_unsafe, batch_size)
        return [p if isinstance(p, UserError) else self._verdict(p.tolist(), cut) for p in outputs]

    def read_each(
        self,
        images: Sequence[Pictures],
        texts: Sequence[object],
        read: Read,
        batch_size: int = 16,
    ) -> list[np.ndarray | UserError]:
        """What a program makes of every window of each row, [W, ...]; or the row's error.

        Args:
            images, texts, batch_size: as of `score`.
            read: the program.
        """
        same_length(images, texts)
        shown = [pictures_of(each) for each in images]
        requests = self._windows(texts, [*map(len, shown)])
        windows = {
            (i, place): row
            for i, rows in enumerate(requests)
            if not isinstance(rows, UserError)
            for place, row in enumerate(rows)
        }
        failed = {i: rows for i, rows in enumerate(requests) if isinstance(rows, UserError)}
        outputs: dict[Window, np.ndarray] = {}
        running: tuple[list[Window], Array | np.ndarray] = [], np.zeros(0)
        make = functools.partial(self._batch, windows, shown)
        for batch, kept, errors in ahead(make, self._plan(windows, batch_size)):
            failed |= errors
            if kept:
                # This batch is on its way while the one before it is waited for, and so are
                # pictures of the next ones while it runs.
                spread = self._spread(batch, len(batch["input_ids"]))
                before, running = running, (kept, read(spread))
                outputs |= _taken(*before)
        outputs |= _taken(*running)
        per_request: list[list[np.ndarray]] = [[] for _ in requests]
        for (i, _), output in sorted(outputs.items(), key=lambda item: item[0]):
            per_request[i].append(output)
        return [failed.get(i) or np.stack(some) for i, some in enumerate(per_request)]

    def _verdict(self, scores: Sequence[float], cut: float) -> Verdict | UserError:
        """The worst window's."""
        if any(map(math.isnan, scores)):  # NaN compares as safe
            return UserError("the model's score is not a number; see crossguard doctor")
        p, words = max(scores), self.settings.prompt
        word = words.positive if p >= cut else words.negative
        return Verdict(p, p >= cut, cut, word, windows=len(scores))

    def _windows(
        self, texts: Sequence[object], pictures: Sequence[int]
    ) -> list[list[Row] | UserError]:
        """`Encoder.windows`, by threads."""
        parts = [slice(i, i + TEXTS_AT_ONCE) for i in range(0, len(texts), TEXTS_AT_ONCE)]
        made = ahead(lambda part: self.encoder.windows(texts[part], pictures[part]), parts)
        return [rows for some in made for rows in some]

    def _plan(
        self, windows: Mapping[Window, Row], batch_size: int
    ) -> list[tuple[Planned, list[Window]]]:
        """The batches that windows are computed in, with the windows of each."""
        keys, encoder, devices = list(windows), self.encoder, 1
        if self.mesh is not None:
            own = batch_sharding(self.mesh, self.rules).shard_shape((self.mesh.size,))[0]
            devices = self.mesh.size // own
        planned = plan(
            [len(row.ids) for row in windows.values()],
            [row.pictures for row in windows.values()],
            [i for i, _ in keys],
            ladder(self.settings.max_length, encoder.tokens_per_image, length_step()),
            batch_size * encoder.usual,
            devices,
        )
        return [(batch, [keys[row] for row in batch.rows]) for batch in planned]

    def _batch(
        self,
        windows: Mapping[Window, Row],
        shown: Sequence[Sequence[Any]],
        planned: tuple[Planned, list[Window]],
    ) -> tuple[dict[str, np.ndarray], list[Window], dict[int, UserError]]:
        """A batch, in which the windows of a request share its pictures, the windows in it, and
        the requests that are not, since their pictures do not decode."""
        batch, some = planned
        failed: dict[int, UserError] = {}
        pictures: dict[int, list[np.ndarray]] = {}
        for i in dict.fromkeys(i for i, _ in some):
            try:
                pictures[i] = [self.encoder.picture(picture) for picture in shown[i]]
            except UserError as error:
                failed[i] = error
        kept = [window for window in some if window[0] in pictures]
        if not kept:
            return {}, kept, failed
        arrays = self.encoder.pad([windows[window] for window in kept], batch.length)
        if (batch.pictures, batch.slots) == (batch.size, 1):
            # Each in its row's own place: nothing to look up, nothing that devices send.
            own, side = [pictures[i] for i, _ in kept], self.encoder.image_size
            pixels = {"pixel_values": in_place(own, batch.size, side)}
            return fill(arrays, batch.size) | pixels, kept, failed
        ends = dict(zip(pictures, np.cumsum([*map(len, pictures.values())]).tolist(), strict=True))
        places = [range(ends[i] - len(pictures[i]), ends[i]) for i, _ in kept]
        flat = [picture for own in pictures.values() for picture in own]
        arrays |= arrange(places, flat, batch.pictures, batch.slots)
        return fill(arrays, batch.size, batch.pictures), kept, failed

    def score_batch(self, batch: dict[str, np.ndarray], parts: Any = None) -> np.ndarray:
        """p_unsafe, float32 [B], of an encoded batch (see `batches`).

        ``parts`` is another ``lora.split`` of this model (an adapter in training), in place of
        the guard's own.

        The batch is filled up (see `batches.filled`), so that few shapes are ever compiled.
        """
        n = len(batch["input_ids"])
        return processes.gather(self._p_unsafe(self._spread(batch, filled(n)), parts))[:n]

    def _spread(self, batch: dict[str, np.ndarray], size: int) -> dict[str, Any]:
        """A batch filled up with its last row, where the model is."""
        arrays: dict[str, Any] = fill(batch, size)
        if self.mesh is None:
            return arrays
        return {k: put(v, batch_sharding(self.mesh, self.rules, len(v))) for k, v in arrays.items()}

    def _p_unsafe(self, arrays: dict[str, Any], parts: Any = None) -> Array:
        """p_unsafe of a filled batch; it is not waited for."""
        parts = parts or self._parts
        return p_unsafe(parts[0], parts[1:], arrays, np.asarray(self.label_ids))

    def save_pretrained(
        self,
        path: str | Path,
        format: str = "merged",
        card: ModelCard | None = None,
        dtype: str | None = None,
    ) -> None:
        """Writes a folder that transformers ("merged") or PEFT ("peft") loads unchanged.

        A plain LLaVA becomes a guard by this, which pads pictures; what is a guard already takes
        them as it does. Of several processes, which all call it, the first writes.

        Args:
            path: the folder; made if need be.
            format: "merged" (an ordinary LLaVA, for any server) or "peft" (the adapter alone).
            card: the model card; a plain one by default.
            dtype: of merged weights; None keeps the model's.

        Raises:
            UserError: another format, or "peft" without an adapter.
        """
        folder, base = Path(path), folder_name(self.folder)
        card = card or ModelCard(base=base)
        card = replace(card, rows=(*card.rows, *self.trained_on))
        settings, size = self.settings, self.model.config.vision.image_size
        if not settings.picture and is_plain(self.folder):
            settings = replace(settings, picture="pad")
        if format == "merged":
            processor = Processor(self.folder, size, settings.picture)
            save_model(self.model, folder, self.folder, card, dtype, processor=processor)
        elif format == "peft":
            save_adapter(self.model, folder, base, card)
        else:
            raise UserError(f"format {format!r} is neither 'merged' nor 'peft'")
        processes.by_first(lambda: settings.write(folder))


def is_plain(folder: str | Path) -> bool:
    """Whether a folder is a LLaVA that nobody has made a guard of."""
    return not (Path(folder) / SETTINGS).exists()


def _base_of(adapter: Path) -> Path:
    """The folder that an adapter names, which is downloaded beforehand."""
    name = read_adapter_config(adapter).get("base_model_name_or_path")
    try:
        return resolve_folder(name or "none")
    except UserError as error:
        raise UserError(
            f"{adapter}/adapter_config.json: base_model_name_or_path {name!r} is no folder here; "
            "give its folder as the model and this one as the adapter"
        ) from error


def raised(verdicts: Sequence[Verdict | UserError]) -> list[Verdict]:
    """The verdicts, where every row has one.

    Raises:
        UserError: the first row's that has none.
    """
    for i, each in enumerate(verdicts):
        if isinstance(each, UserError):
            raise UserError(f"row {i}: {each}") from each
    return [each for each in verdicts if isinstance(each, Verdict)]


def _taken(
    windows: list[Window], outputs: Array | np.ndarray
) -> Iterator[tuple[Window, np.ndarray]]:
    """Each window with its output; what fills the batch up has none."""
    return zip(windows, processes.gather(outputs)[: len(windows)], strict=True)


@functools.partial(jax.jit, static_argnums=0)
def p_unsafe(graphdef: Any, states: Any, batch: dict[str, Array], label_ids: Array) -> Array:
    model = lora.merge(graphdef, *states)
    return verdict.p_positive(verdict.label_logits(model, batch, label_ids))


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    graphdef: Any, states: Any, ids: Array, pixels: Array | None, mask: Array, index: Array | None
) -> Array:
    return lora.merge(graphdef, *states)(ids, pixels, mask, picture_index=index)


def same_length(images: Any, texts: Any) -> None:
    """Refuses what are no lists of one length."""
    for name, rows in (("images", images), ("texts", texts)):
        if isinstance(rows, str | bytes | Path) or not hasattr(rows, "__len__"):
            raise UserError(
                f"{name} is a {type(rows).__name__}; give lists, an image and a text a row"
            )
    if len(images) != len(texts):
        raise UserError(
            f"{len(images)} images but {len(texts)} texts; give one image a text, None for a row "
            "without a picture"
        )


def _index(here: np.ndarray, pictures: int, model: Llava) -> np.ndarray:
    """``picture_index`` [B, I] of pictures in order of occurrence."""
    p = model.config.tokens_per_image
    counts = here.sum(1)
    if (counts % p).any() or counts.sum() != p * pictures:
        raise UserError(
            f"{int(counts.sum())} picture tokens for {pictures} picture(s) of {p} tokens "
            "each; every picture takes its own, within one row"
        )
    each = counts // p
    index = np.zeros((len(here), max(int(each.max()), 1)), np.int32)
    starts = np.concatenate([[0], np.cumsum(each)[:-1]])
    for row, (start, n) in enumerate(zip(starts, each, strict=True)):
        index[row, :n] = np.arange(start, start + n)
    return index
