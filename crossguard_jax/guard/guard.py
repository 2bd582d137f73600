"""The public `Guard`: a LLaVA folder that gives verdicts."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules, batch_sharding, shardings
from crossguard_jax.core.typing import Array, Float, Int
from crossguard_jax.data.prompts import PromptTemplate, get_template
from crossguard_jax.guard.encoding import (
    Encoder,
    Picture,
    Row,
    Settings,
    bucket,
    side_by_side,
)
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.hf.export import ModelCard, save_model
from crossguard_jax.hf.load import folder_name, load_model, resolve_folder
from crossguard_jax.hf.peft import load_adapter, read_adapter_config, save_adapter
from crossguard_jax.nn import lora, verdict
from crossguard_jax.nn.llava import Llava


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
    """

    def __init__(
        self,
        model: Llava,
        folder: str | Path,
        settings: Settings,
        mesh: Mesh | None = None,
        rules: Rules = DEFAULT_RULES,
    ):
        self.model, self.folder, self.mesh, self.rules = model, Path(folder), mesh, rules
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
        rules: Rules = DEFAULT_RULES,
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
            rules: logical to mesh axes.
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
        if adapter is not None:
            model = load_adapter(model, adapter)
            if (Path(adapter) / "guard_config.json").exists():
                settings = Settings.read(Path(adapter))
        if prompt is not None:
            template = get_template(prompt) if isinstance(prompt, str) else prompt
            settings = replace(settings, prompt=template)
        if threshold is not None:
            settings = replace(settings, threshold=threshold)
        return cls(model, folder, settings, mesh, rules)

    @property
    def label_ids(self) -> tuple[int, int]:
        """Token ids of the (negative, positive) label: (safe, unsafe)."""
        return self.encoder.label_ids

    def encode(
        self, images: Sequence[Picture], texts: Sequence[str], truncate: bool = False
    ) -> dict[str, np.ndarray]:
        """What transformers' LLaVA processor makes of the guard's prompts.

        Args:
            images: one a row; None for a row without a picture.
            texts: one a row.
            truncate: cut texts that do not fit, instead of raising.

        Returns:
            ``input_ids`` and ``attention_mask``, int32 [B, L] padded on the right, and
            ``pixel_values``, float32 [M, 3, X, X] of the M rows that have a picture, in order
            (left out when M is 0).

        Raises:
            UserError: no lists, lengths differ, a text that is no str, is empty or too long, a
                picture that does not decode.
        """
        _same_length(images, texts)
        rows = self.encoder.tokenize(texts, [p is not None for p in images], truncate)
        batch = self.encoder.pad(rows, max(len(row.ids) for row in rows))
        pictures = [p for p in images if p is not None]
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
        slots = None
        if pixel_values is not None:
            slots = _to_slots(ids == self.model.config.image_token_id, pixel_values, self.model)
        elif (ids == self.model.config.image_token_id).any():
            raise UserError("input_ids has picture tokens, but there are no pixel_values")
        return _logits(self._parts[0], self._parts[1:], ids, slots, mask.astype(bool))

    def score(
        self,
        images: Sequence[Picture],
        texts: Sequence[str],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
        truncate: bool = False,
    ) -> list[Verdict]:
        """One verdict a row, in order; a row's verdict does not depend on the others.

        Args:
            images: one a row; None for a row without a picture.
            texts: one a row.
            batch_size: rows to a forward pass, at most.
            threshold: the least p_unsafe that is unsafe; None is the guard's own.
            truncate: cut texts that do not fit, instead of raising.

        Raises:
            UserError: as `encode`.
        """

        def stop(row: int, error: UserError) -> None:
            raise UserError(f"row {row}: {error}") from error

        return [*self._verdicts(images, texts, batch_size, threshold, truncate, stop).values()]

    def score_each(
        self,
        images: Sequence[Picture],
        texts: Sequence[object],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
        truncate: bool = False,
    ) -> list[Verdict | UserError]:
        """As `score`, with the error of each row that has one in its place."""
        out: dict[int, Verdict | UserError] = {}
        out |= self._verdicts(images, texts, batch_size, threshold, truncate, out.__setitem__)
        return [out[i] for i in range(len(texts))]

    def _verdicts(
        self,
        images: Sequence[Picture],
        texts: Sequence[object],
        batch_size: int,
        threshold: float | None,
        truncate: bool,
        failed: Callable[[int, UserError], None],
    ) -> dict[int, Verdict]:
        """Verdicts by row, in order; ``failed`` is told of every row that gets none."""
        _same_length(images, texts)
        rows: dict[int, Row] = {}
        has_picture = [p is not None for p in images]
        tokenized = self.encoder.tokenize_each(texts, has_picture, truncate) if texts else []
        for i, row in enumerate(tokenized):
            if isinstance(row, UserError):
                failed(i, row)
            else:
                rows[i] = row
        scores: dict[int, float] = {}
        running: tuple[list[int], Array | np.ndarray] = [], np.zeros(0)
        for length, size, some in self._batches(rows, batch_size):
            pixels: dict[int, np.ndarray | None] = {}
            for i in some:
                try:
                    pixels[i] = None if images[i] is None else self.encoder.picture(images[i])
                except UserError as error:
                    failed(i, error)
            if not pixels:
                continue
            batch = self.encoder.pad([rows[i] for i in pixels], length)
            slots = side_by_side([*pixels.values()])
            if slots is not None:
                batch["pixel_values"] = slots
            # This batch is on its way while the one before it is waited for, and so are pictures
            # of the next while it runs.
            before, running = running, ([*pixels], self._start(batch, size))
            scores |= _taken(*before)
        scores |= _taken(*running)
        cut = self.settings.threshold if threshold is None else threshold
        words = self.settings.prompt
        verdicts = {}
        for i, p in sorted(scores.items()):
            # NaN compares as safe.
            if math.isnan(p):
                failed(i, UserError("the model's score is not a number; see crossguard doctor"))
                continue
            word = words.positive if p >= cut else words.negative
            verdicts[i] = Verdict(p, p >= cut, cut, word, rows[i].truncated)
        return verdicts

    def _batches(
        self, rows: Mapping[int, Row], batch_size: int
    ) -> Iterator[tuple[int, int, Sequence[int]]]:
        """``(padded length, batch size, rows)``: rows of one length, those with a picture together.

        The last rows of a length are computed as a batch of the size of those before it.
        """
        lengths = {i: bucket(len(r.ids), self.settings.max_length) for i, r in rows.items()}
        order = sorted(rows, key=lambda i: (lengths[i], rows[i].has_picture))
        for length, same in itertools.groupby(order, key=lengths.__getitem__):
            group = list(same)
            size = filled(min(len(group), batch_size))
            for start in range(0, len(group), batch_size):
                yield length, size, group[start : start + batch_size]

    def score_batch(self, batch: dict[str, np.ndarray], parts: Any = None) -> np.ndarray:
        """p_unsafe, float32 [B], of an encoded batch with one picture slot a row.

        ``parts`` is another ``lora.split`` of this model (an adapter in training), in place of
        the guard's own.

        The batch is filled up (see `filled`), so that few shapes are ever compiled.
        """
        n = len(batch["input_ids"])
        return np.asarray(self._start(batch, filled(n), parts))[:n]

    def _start(self, batch: dict[str, np.ndarray], size: int, parts: Any = None) -> Array:
        """p_unsafe [size] of a batch filled up with its last row; it is not waited for."""
        missing = size - len(batch["input_ids"])
        arrays: dict[str, Any] = {
            k: np.concatenate([v, np.repeat(v[-1:], missing, axis=0)]) for k, v in batch.items()
        }
        if self.mesh is not None:
            sharding = batch_sharding(self.mesh, self.rules, size)
            arrays = {k: jax.device_put(v, sharding) for k, v in arrays.items()}
        parts = parts or self._parts
        return _p_unsafe(parts[0], parts[1:], arrays, np.asarray(self.label_ids))

    def save_pretrained(
        self,
        path: str | Path,
        format: str = "merged",
        card: ModelCard | None = None,
        dtype: str | None = None,
    ) -> None:
        """Writes a folder that transformers ("merged") or PEFT ("peft") loads unchanged.

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
        if format == "merged":
            save_model(self.model, folder, self.folder, card, dtype)
        elif format == "peft":
            save_adapter(self.model, folder, base, card)
        else:
            raise UserError(f"format {format!r} is neither 'merged' nor 'peft'")
        self.settings.write(folder)


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


def _taken(rows: list[int], scores: Array | np.ndarray) -> Iterator[tuple[int, float]]:
    """Each row with its score; what fills the batch up has no row."""
    return zip(rows, np.asarray(scores)[: len(rows)].tolist(), strict=True)


def filled(n: int) -> int:
    """The batch size that ``n`` rows are computed as: 1, 4, 16, or a multiple of 32."""
    return next((size for size in (1, 4, 16) if n <= size), -(-n // 32) * 32)


@functools.partial(jax.jit, static_argnums=0)
def _p_unsafe(graphdef: Any, states: Any, batch: dict[str, Array], label_ids: Array) -> Array:
    model = lora.merge(graphdef, *states)
    return verdict.p_positive(verdict.label_logits(model, batch, label_ids))


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef: Any, states: Any, ids: Array, slots: Array | None, mask: Array) -> Array:
    return lora.merge(graphdef, *states)(ids, slots, mask)


def _same_length(images: Any, texts: Any) -> None:
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


def _to_slots(here: np.ndarray, pixel_values: Any, model: Llava) -> Array:
    """Pictures in order of occurrence to slots of their rows, [B, I, C, X, Y]."""
    p = model.config.tokens_per_image
    counts = here.sum(1)
    pixels = jnp.asarray(pixel_values)
    if (counts % p).any() or counts.sum() != p * pixels.shape[0]:
        raise UserError(
            f"{int(counts.sum())} picture tokens for {pixels.shape[0]} picture(s) of {p} tokens "
            "each; every picture takes its own, within one row"
        )
    each = counts // p
    slot = np.zeros((len(here), max(int(each.max()), 1)), np.int32)
    starts = np.concatenate([[0], np.cumsum(each)[:-1]])
    for row, (start, n) in enumerate(zip(starts, each, strict=True)):
        slot[row, :n] = np.arange(start, start + n)
    return pixels[slot]
