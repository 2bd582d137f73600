"""What explanations of a guard's verdicts are made with: other pictures, and kinds of harm.

The folder has ``why.json`` and ``why.safetensors``, and ``pictures/``. It is fitted to labelled
rows by ``crossguard calibrate --as why``, and is good for the model that it was fitted to.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, Int
from crossguard_jax.guard.encoding import Pictures
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf.folder import read_object
from crossguard_jax.io import images as pictures_io
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.nn import lora
from crossguard_jax.nn.llava import last_positions

FACTS, NUMBERS, PICTURES = "why.json", "why.safetensors", "pictures"
ALONE = 0.15
"""A text is as unsafe alone as it is beside all but this share of other pictures."""
LAYERS = 4
"""Layers whose states a category is read from, at most."""
LEAST = 8
"""Rows of a category that it is learned from."""
DECAY, ITERATIONS = 1e-3, 100


@dataclass(frozen=True)
class Reasons:
    """Fitted to a guard.

    Attributes:
        pictures: encoded, of benign rows: a text is scored beside each of them.
        names: kinds of harm, K; none where the rows named none.
        layers: whose states the kinds are read from.
        numbers: ``mean`` and ``scale`` [D], ``weight`` [D, K] and ``bias`` [K].
        temperature: what logits are divided by, from rows that the weights have not seen.
        guard: what the model is (`guard.identity`), "" of none.
        figures: of kinds, on rows that nothing was fitted to.
    """

    pictures: tuple[bytes, ...] = ()
    names: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    temperature: float = 1.0
    guard: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def alone(p_unsafe: Float[np.ndarray, "N B"]) -> Float[np.ndarray, " B"]:
        """p_unsafe of texts alone, from those beside N other pictures: what it is beside all but
        the safest few. One picture may happen to fit a text; most do not."""
        return np.sort(p_unsafe, axis=0)[int(ALONE * len(p_unsafe))]

    def probabilities(self, states: Float[np.ndarray, "B D"]) -> Float[np.ndarray, "B K"]:
        """Of each kind of harm, where it is one of them."""
        return softmax(_logits(self.numbers, states) / self.temperature, axis=1)

    def save(self, folder: str | Path) -> None:
        """Writes the folder."""
        folder = Path(folder)
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        files = []
        for i, picture in enumerate(self.pictures):
            files.append(f"{PICTURES}/{i}.{pictures_io.ending(picture, str(i))}")
            write_atomic(folder / files[-1], picture)
        if self.numbers:
            arrays = {name: np.ascontiguousarray(x) for name, x in self.numbers.items()}
            write_atomic(folder / NUMBERS, save(arrays))
        facts = {
            "pictures": files,
            "names": self.names,
            "layers": self.layers,
            "temperature": self.temperature,
            "guard": self.guard,
            "figures": self.figures,
        }
        write_atomic(folder / FACTS, json.dumps(facts, indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | Path, guard: str) -> "Reasons":
        """Reads what `save` wrote.

        Args:
            folder: the folder.
            guard: the model that it is to be good for.

        Raises:
            UserError: it is missing, damaged, or was fitted to another model.
        """
        path, numbers = Path(folder) / FACTS, {}
        if not path.is_file():
            raise UserError(f"{path}: not there; crossguard calibrate --as why writes it")
        facts = read_object(path)
        try:
            if facts["names"]:
                numbers = load_file(path.with_name(NUMBERS))
            read = cls(
                tuple(pictures_io.read_picture(path.parent / name) for name in facts["pictures"]),
                tuple(facts["names"]),
                tuple(facts["layers"]),
                numbers,
                float(facts["temperature"]),
                facts["guard"],
                facts["figures"],
            )
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error!r}); fit it anew") from error
        if read.guard != guard:
            raise UserError(f"{path}: was fitted to another model; crossguard calibrate --as why")
        return read


def spread_layers(total: int) -> tuple[int, ...]:
    """At most `LAYERS` of a model's layers, evenly spread, the last one among them."""
    n = min(LAYERS, total)
    return tuple(total * (i + 1) // n - 1 for i in range(n))


def category_states(
    guard: Guard,
    layers: Sequence[int],
    images: Sequence[Pictures],
    texts: Sequence[object],
    batch_size: int = 16,
) -> list[Float[np.ndarray, " D"] | UserError]:
    """The layers' states at the prompt's last token, side by side, of each row's worst window."""
    graphdef, *states = guard.parts
    labels, chosen = np.asarray(guard.label_ids), np.asarray(layers, np.int32)

    def read(batch: dict[str, Any]) -> Array:
        return _states(graphdef, tuple(states), batch, labels, chosen)

    return [
        row if isinstance(row, UserError) else row[row[:, 0].argmax(), 1:]
        for row in guard.read_each(images, texts, read, batch_size)
    ]


@functools.partial(jax.jit, static_argnums=0)
def _states(
    graphdef: Any, states: Any, batch: dict[str, Array], labels: Array, layers: Array
) -> Float[Array, "B N"]:
    """The margin of each row, and its states behind it."""
    model = lora.merge(graphdef, *states)
    lm, mask = model.language_model, batch["attention_mask"].astype(bool)
    x = model.embed(batch["input_ids"], batch.get("pixel_values"), 1.0, batch.get("picture_index"))
    outputs = lm.layer_states(x, mask, last_positions(mask)).astype(jnp.float32)
    logits = lm.head(lm.norm(outputs[-1:].astype(x.dtype)), labels)[0]
    margin = (logits[:, 1] - logits[:, 0])[:, None]
    return jnp.concatenate([margin, outputs[layers].swapaxes(0, 1).reshape(len(x), -1)], axis=1)


def fit_categories(
    states: Float[np.ndarray, "B D"], labels: Int[np.ndarray, " B"], n: int
) -> tuple[dict[str, np.ndarray], float]:
    """Multinomial logistic regression, each kind with the same weight, and its temperature.

    Args:
        states: of unsafe rows.
        labels: their kinds, 0 to ``n`` - 1.
        n: K.

    Returns:
        ``numbers`` and ``temperature`` of `Reasons`; every fourth row is for the temperature.
    """
    places = np.arange(len(labels))
    held, fit = places[3::4], places[places % 4 != 3]
    mean, scale = states[fit].mean(0), states[fit].std(0) + 1e-6
    x, y = (states[fit] - mean) / scale, labels[fit]
    weights = 1 / np.bincount(y, minlength=n).clip(1)[y]
    weights /= weights.sum()
    shape = (states.shape[1] + 1, n)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel = flat.reshape(shape)
        log_p = log_softmax(x @ kernel[:-1] + kernel[-1], axis=1)
        value = -(weights * log_p[np.arange(len(y)), y]).sum() + DECAY * (kernel[:-1] ** 2).sum()
        slope = np.exp(log_p)
        slope[np.arange(len(y)), y] -= 1
        slope *= weights[:, None]
        return float(value), np.vstack(
            [x.T @ slope + 2 * DECAY * kernel[:-1], slope.sum(0)]
        ).ravel()

    outcome = minimize(
        loss,
        np.zeros(shape).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": ITERATIONS},
    )
    kernel = outcome.x.reshape(shape).astype(np.float32)
    numbers = {"mean": mean, "scale": scale, "weight": kernel[:-1], "bias": kernel[-1]}
    logits, truth = _logits(numbers, states[held]), labels[held]

    def nats(log_temperature: float) -> float:
        log_p = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-log_p[np.arange(len(truth)), truth].mean())

    best = minimize_scalar(nats, bounds=(-3.0, 3.0), method="bounded")
    return numbers, float(np.exp(best.x))


def _logits(numbers: Mapping[str, np.ndarray], states: np.ndarray) -> np.ndarray:
    return ((states - numbers["mean"]) / numbers["scale"]) @ numbers["weight"] + numbers["bias"]
