"""JailDAM (arXiv 2504.03770): how well does an autoencoder of benign rows know this one?

CLIP's embedding of a row's text and of its picture, not normalized, are compared with a memory of
unsafe concepts: ``a = [t . C_text ; v . C_picture]``. An autoencoder learns benign rows' ``a``; the
mean squared error of reconstruction is the figure. At test time the memory may adapt: a row whose
likeliest concept is likely enough overwrites the least used one by what its five nearest concepts
leave of its embedding. Then a row's figure depends on the rows before it.

``paper`` is as described there. ``as_released`` is what the published code does in the adapting:
the softmax is over the embedding's own coordinates, and its five greatest are taken for concepts.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from crossguard_jax.attacks.suite import digest
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, Int, PRNGKeyArray
from crossguard_jax.guard.encoding import Pictures, pictures_of
from crossguard_jax.guard.settings import Settings
from crossguard_jax.hf.clip import ClipEncoder
from crossguard_jax.io.images import rgb
from crossguard_jax.systems.rivals.detector import Cut, Detector, readable

FORMS = ("paper", "as_released")
WIDTHS = (128, 64, 128)
EPOCHS, BATCH, RATE = 5, 8, 1e-3
NEAREST, LIKELY = 5, 4e-4
"""Concepts that a new one leaves out, and how likely the likeliest must be for it."""

Encoder = Mapping[str, Any]
"""The autoencoder: ``kernel_i`` and ``bias_i`` of its four layers."""


class JailDam(Detector):
    """See the module; the memory stays as it is, so that a row's verdict is its own.

    Args:
        clip: both towers.
        settings: label words.
        memory: of the concepts, [K, 2, D]: for texts and for pictures.
        autoencoder: trained on benign rows.
        cut: where the error begins to be unsafe.
    """

    kind = "jaildam"

    def __init__(
        self,
        clip: ClipEncoder,
        settings: Settings,
        memory: Float[np.ndarray, "K 2 D"],
        autoencoder: Encoder,
        cut: Cut,
    ):
        super().__init__(settings, cut, clip.folder)
        self.clip, self.memory, self.autoencoder = clip, memory, autoencoder

    def figures(
        self, images: Sequence[Pictures], texts: Sequence[object], batch_size: int = 16
    ) -> list[float | UserError]:
        """Errors of reconstruction."""
        rows = embed(self.clip, images, texts, batch_size)
        good = [row for row in rows if not isinstance(row, UserError)]
        a = similarities(self.memory, np.stack(good)) if good else np.zeros((0, 1))
        errors = iter(errors_of(self.autoencoder, a).tolist() if good else ())
        return [row if isinstance(row, UserError) else next(errors) for row in rows]

    def identity(self) -> dict[str, Any]:
        """As of `Detector`."""
        numbers = digest({"memory": self.memory, "autoencoder": dict(self.autoencoder)})
        return {"kind": self.kind, "clip": self.clip.digest, "numbers": numbers}


def embed(
    clip: ClipEncoder,
    images: Sequence[Pictures],
    texts: Sequence[object],
    batch_size: int = 16,
) -> list[Float[np.ndarray, "2 D"] | UserError]:
    """CLIP's embeddings of each row's text and first picture, not normalized; zeros where a row has
    no picture, and no text."""
    graphdef, state = nnx.split(clip.model, graph=False)
    rows: list[np.ndarray | UserError] = []
    for start in range(0, len(texts), batch_size):
        some = slice(start, start + batch_size)
        pixels: list[np.ndarray] = []
        words: list[str] = []
        part: list[tuple[bool, bool] | UserError] = []
        for given, text in zip(images[some], texts[some], strict=True):
            try:
                shown = pictures_of(given)
                if not isinstance(text, str):
                    raise UserError(f"the text is a {type(text).__name__}; give a str")
                picture = clip.picture(rgb(shown[0])) if shown else None
            except UserError as error:
                part.append(error)
                continue
            part.append((bool(text), picture is not None))
            words.append(text)
            pixels.append(_nothing(clip) if picture is None else picture)
        if words:
            spare = batch_size - len(words)
            arrays = clip.texts(words + words[-1:] * spare)
            stacked = np.stack(pixels + pixels[-1:] * spare)
            ids, mask = arrays["input_ids"], arrays["attention_mask"]
            vectors = iter(np.asarray(_towers(graphdef, state, ids, mask, stacked)))
        for each in part:
            if isinstance(each, UserError):
                rows.append(each)
            else:
                rows.append(next(vectors) * np.array(each, np.float32)[:, None])
    return rows


def _nothing(clip: ClipEncoder) -> np.ndarray:
    vision = clip.model.config.vision
    return np.zeros((vision.num_channels, vision.image_size, vision.image_size), np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _towers(
    graphdef: Any, state: Any, ids: Array, mask: Array, pixels: Array
) -> Float[Array, "B 2 D"]:
    clip = nnx.merge(graphdef, state)
    text = clip.text_projection(clip.text_model(ids, mask))
    picture = clip.visual_projection(clip.vision_model(pixels))
    return jnp.stack([text, picture], axis=1).astype(jnp.float32)


def remember(clip: ClipEncoder, concepts: Sequence[str]) -> Float[np.ndarray, "K 2 D"]:
    """A memory of concepts: each one's text embedding, for texts and for pictures.

    Raises:
        UserError: fewer concepts than a new one takes.
    """
    if len(concepts) < NEAREST:
        raise UserError(f"--concepts: {len(concepts)} of them; {NEAREST} or more are needed")
    rows = readable(embed(clip, [()] * len(concepts), concepts))
    return np.stack([np.stack([row[0], row[0]]) for row in rows])


def similarities(
    memory: Float[np.ndarray, "K 2 D"], rows: Float[np.ndarray, "B 2 D"]
) -> Float[np.ndarray, "B F"]:
    """``[t . C_text ; v . C_picture]``, [B, 2 K]."""
    return np.einsum("bsd,ksd->bsk", rows, memory).reshape(len(rows), -1)


def errors_of(autoencoder: Encoder, a: Float[np.ndarray, "B F"]) -> Float[np.ndarray, " B"]:
    """Mean squared error of reconstruction."""
    return np.asarray(((_forward(autoencoder, jnp.asarray(a)) - a) ** 2).mean(axis=1))


def _forward(weights: Encoder, x: Array) -> Array:
    for i in range(len(WIDTHS) + 1):
        x = x @ weights[f"kernel_{i}"] + weights[f"bias_{i}"]
        x = x if i == len(WIDTHS) else jax.nn.relu(x)
    return x


def train_autoencoder(
    a: Float[np.ndarray, "N F"], seed: int = 0, epochs: int = EPOCHS
) -> dict[str, np.ndarray]:
    """An autoencoder F, 128, 64, 128, F of benign rows (Adam, mean squared error).

    Raises:
        UserError: fewer rows than a batch.
    """
    if len(a) < BATCH:
        raise UserError(f"jaildam: {len(a)} benign rows to learn; {BATCH} or more are needed")
    start_key, key = jax.random.split(jax.random.key(seed))
    weights = _start(start_key, a.shape[1])
    adam = optax.adam(RATE)
    data = jnp.asarray(a, jnp.float32)

    @jax.jit
    def epoch(carry: Any, key: PRNGKeyArray) -> Any:
        order = jax.random.permutation(key, len(a))[: len(a) // BATCH * BATCH].reshape(-1, BATCH)

        def step(carry: Any, places: Array) -> tuple[Any, None]:
            weights, opt_state = carry
            batch = data[places]
            grads = jax.grad(lambda w: ((_forward(w, batch) - batch) ** 2).mean())(weights)
            updates, opt_state = adam.update(grads, opt_state, weights)
            return (optax.apply_updates(weights, updates), opt_state), None

        return jax.lax.scan(step, carry, order)[0]

    carry = weights, adam.init(weights)
    for one in jax.random.split(key, epochs):
        carry = epoch(carry, one)
    return {name: np.asarray(value) for name, value in carry[0].items()}


def _start(key: PRNGKeyArray, width: int) -> dict[str, Array]:
    weights: dict[str, Array] = {}
    sizes = (*WIDTHS, width)
    keys = jax.random.split(key, len(sizes))
    for i, n_out in enumerate(sizes):
        reach = width**-0.5  # as torch's Linear starts
        kernel_key, bias_key = jax.random.split(keys[i])
        shape = (width, n_out)
        weights[f"kernel_{i}"] = jax.random.uniform(kernel_key, shape, minval=-reach, maxval=reach)
        weights[f"bias_{i}"] = jax.random.uniform(bias_key, (n_out,), minval=-reach, maxval=reach)
        width = n_out
    return weights


def adapted_errors(
    memory: Float[np.ndarray, "K 2 D"],
    autoencoder: Encoder,
    rows: Float[np.ndarray, "B 2 D"],
    form: str = "paper",
    uses: Float[np.ndarray, " K"] | None = None,
) -> Iterator[float]:
    """Errors of rows that come one after the other, the memory adapting behind each.

    Args:
        memory: as it was trained; it is not changed.
        autoencoder: of that memory.
        rows: embeddings, in the order in which they come.
        form: a name in `FORMS`.
        uses: how often each concept was among the nearest of a benign row; zeros by default.

    Raises:
        UserError: another form.
    """
    if form not in FORMS:
        raise UserError(f"--form {form!r} is none of {', '.join(FORMS)}")
    memory = memory.copy()
    uses = np.zeros(len(memory)) if uses is None else uses.astype(np.float64)
    for row in rows:
        yield float(errors_of(autoencoder, similarities(memory, row[None]))[0])
        for side in (0, 1):
            likely = row[side] if form == "as_released" else memory[:, side] @ row[side]
            p = np.exp(likely - likely.max())
            p /= p.sum()
            nearest = np.argsort(-p, kind="stable")[:NEAREST]
            if p[nearest[0]] > LIKELY:
                inside = nearest % len(memory)  # a coordinate is no concept's number
                new = row[side] - p[nearest] @ memory[inside, side]
                place = int(uses.argmin())
                memory[place, side] = new
                uses[place] = uses.max() + 1


def concept_uses(
    memory: Float[np.ndarray, "K 2 D"], rows: Float[np.ndarray, "B 2 D"]
) -> Float[np.ndarray, " K"]:
    """How often each concept is among the `NEAREST` of a row's text or picture."""
    each = np.einsum("bsd,ksd->bsk", rows, memory)
    nearest = np.argsort(-each, axis=-1, kind="stable")[..., :NEAREST]
    return np.bincount(nearest.ravel(), minlength=len(memory)).astype(np.float64)


def fit(
    clip: ClipEncoder,
    settings: Settings,
    concepts: Sequence[str],
    rows: tuple[Sequence[Pictures], Sequence[str]],
    held: Int[np.ndarray, " N"],
    *,
    fpr: float = 0.05,
    seed: int = 0,
    batch_size: int = 16,
) -> JailDam:
    """Learns some of the benign rows, and chooses the cut on others.

    Args:
        clip: both towers.
        settings: label words.
        concepts: what is unsafe, in words.
        rows: pictures and texts of benign rows.
        held: positions of the rows that the cut is chosen on.
        fpr: of the cut.
        seed: of the training.
        batch_size: rows to a forward pass.

    Raises:
        UserError: a row that cannot be read, or whatever the parts refuse.
    """
    memory = remember(clip, concepts)
    vectors = np.stack(readable(embed(clip, *rows, batch_size)))
    a = similarities(memory, vectors)
    others = np.setdiff1d(np.arange(len(a)), held)
    autoencoder = train_autoencoder(a[others], seed)
    cut = Cut.choose(errors_of(autoencoder, a[held]), fpr)
    return JailDam(clip, settings, memory, autoencoder, cut)
