"""HiddenDetect (arXiv 2502.14744): does the model itself lean to a refusal, layer by layer?

No training and no generation. Each layer's state at the prompt's last token goes through the final
norm and the head; its figure is the cosine of those logits with an indicator of refusal words. A
row's figure is the trapezoid sum over the layers that tell unsafe rows from safe ones best.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, Int
from crossguard_jax.guard.encoding import Pictures
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.identity import guard_identity
from crossguard_jax.nn import lora
from crossguard_jax.nn.llava import last_positions
from crossguard_jax.systems.rivals.detector import Cut, Detector, readable

WORDS = (
    *("Sorry", "sorry", "unfortunately", "unfortunate", "sadly", "explicit", "deadly", "crim"),
    *("criminal", "illegal", "dangerous", "harmful", "warning", "alarm", "caution", "shame"),
    *("conspiracy", "Subject", "contrary", "shouldn"),
)
"""The paper's refusal words."""


class HiddenDetect(Detector):
    """See the module.

    Args:
        guard: the model, in its ordinary chat prompt.
        words: refusal words; the first token of each counts.
        layers: those whose figures are summed, in order; the first layer is 0.
        cut: where a sum begins to be unsafe.

    Raises:
        UserError: no words, or a layer that the model does not have.
    """

    kind = "hidden_detect"

    def __init__(self, guard: Guard, words: Sequence[str], layers: Sequence[int], cut: Cut):
        super().__init__(guard.settings, cut, guard.folder)
        self.mesh = guard.mesh
        total = guard.model.config.text.num_hidden_layers
        if not layers or min(layers) < 0 or max(layers) >= total:
            raise UserError(f"layers {list(layers)}: the model has 0 to {total - 1}; give some")
        self.guard, self.words, self.layers = guard, tuple(words), tuple(layers)
        self.word_ids = word_ids(guard, words)

    def figures(
        self, images: Sequence[Pictures], texts: Sequence[object], batch_size: int = 16
    ) -> list[float | UserError]:
        """Trapezoid sums over the layers."""
        each = layer_figures(self.guard, self.word_ids, images, texts, batch_size)
        return [
            row if isinstance(row, UserError) else float(summed(row, self.layers).max())
            for row in each
        ]

    def identity(self) -> dict[str, Any]:
        """As of `Detector`."""
        own = {"kind": self.kind, "words": list(self.word_ids), "layers": list(self.layers)}
        return guard_identity(self.guard) | own


def word_ids(guard: Guard, words: Sequence[str]) -> tuple[int, ...]:
    """The first token of each word, each id once.

    Raises:
        UserError: no words, or one that the tokenizer does not know.
    """
    tokenizer, ids = guard.encoder.tokenizer, []
    for word in words:
        tokens = tokenizer.encode(word, add_special_tokens=False)
        if not tokens or tokens[0] == tokenizer.unk_token_id:
            raise UserError(f"--words {word!r}: no word of this model's tokenizer; leave it out")
        ids.append(tokens[0])
    if not ids:
        raise UserError("--words: none; give the words that this model refuses with")
    return tuple(dict.fromkeys(ids))


def layer_figures(
    guard: Guard,
    ids: Sequence[int],
    images: Sequence[Pictures],
    texts: Sequence[object],
    batch_size: int = 16,
) -> list[Float[np.ndarray, "W n_layers"] | UserError]:
    """Every layer's cosine with the refusal words, of each window of each row."""
    graphdef, *states = guard.parts
    refusal = np.asarray(ids)

    def read(batch: dict[str, Any]) -> Array:
        return _cosines(graphdef, tuple(states), batch, refusal)

    return guard.read_each(images, texts, read, batch_size)


def summed(
    figures: Float[np.ndarray, "B n_layers"], layers: Sequence[int]
) -> Float[np.ndarray, " B"]:
    """The trapezoid sum over some layers, a step each; of one layer its own figure."""
    own = figures[:, list(layers)]
    return own[:, 0] if len(layers) == 1 else np.trapezoid(own, axis=1)


def telling_layers(
    figures: Float[np.ndarray, "B n_layers"], unsafe: Bool[np.ndarray, " B"]
) -> tuple[int, ...]:
    """The layers at which unsafe rows are above safe ones by more than at the last layer (the
    paper's FDV); the last one where there are none.

    Raises:
        UserError: rows of one label alone.
    """
    if unsafe.all() or not unsafe.any():
        raise UserError("hidden_detect: layers are chosen on safe and unsafe rows; give both")
    apart = figures[unsafe].mean(axis=0) - figures[~unsafe].mean(axis=0)
    return tuple(np.flatnonzero(apart > apart[-1]).tolist()) or (figures.shape[1] - 1,)


@functools.partial(jax.jit, static_argnums=0)
def _cosines(
    graphdef: Any, states: Any, batch: dict[str, Array], ids: Int[Array, " K"]
) -> Float[Array, "B n_layers"]:
    model = lora.merge(graphdef, *states)
    lm, mask = model.language_model, batch["attention_mask"].astype(bool)
    x = model.embed(batch["input_ids"], batch.get("pixel_values"), 1.0, batch.get("picture_index"))
    outputs = lm.layer_states(x, mask, last_positions(mask))
    logits = lm.head(lm.norm(outputs))  # [n_layers, B, V]
    inside = logits[..., ids].sum(axis=-1)
    return (inside / (jnp.linalg.norm(logits, axis=-1) * len(ids) ** 0.5)).T


def fit(
    guard: Guard,
    rows: tuple[Sequence[Pictures], Sequence[str]],
    unsafe: Bool[np.ndarray, " B"],
    held: Int[np.ndarray, " N"],
    *,
    words: Sequence[str] = WORDS,
    fpr: float = 0.05,
    batch_size: int = 16,
) -> HiddenDetect:
    """Chooses layers on some rows, and the cut on the benign ones among others.

    Args:
        guard: the model.
        rows: pictures and texts.
        unsafe: their labels.
        held: positions of the rows that the cut is chosen on.
        words: refusal words.
        fpr: of the cut.
        batch_size: rows to a forward pass.

    Raises:
        UserError: a row that cannot be read, or whatever the parts refuse.
    """
    each = readable(layer_figures(guard, word_ids(guard, words), *rows, batch_size))
    others = np.setdiff1d(np.arange(len(unsafe)), held)
    layers = telling_layers(np.stack([each[i].max(axis=0) for i in others]), unsafe[others])
    sums = [summed(each[i], layers).max() for i in held if not unsafe[i]]
    return HiddenDetect(guard, words, layers, Cut.choose(np.array(sums), fpr))
