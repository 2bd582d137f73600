"""CLIP's two towers over pictures and texts as they come, in batches of one shape."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from PIL import Image

from crossguard_jax.core.sharding import DEFAULT_RULES, Rules, batch_sharding
from crossguard_jax.core.typing import Array, Float
from crossguard_jax.nn.clip import Clip


@runtime_checkable
class ClipPreprocessor(Protocol):
    """What stands between a CLIP folder's users and its model; safe to call from threads."""

    def texts(self, texts: list[str], /) -> Mapping[str, np.ndarray]:
        """``input_ids`` and ``attention_mask``, both [B, L], padded on the right to few lengths."""
        ...

    def pictures(self, pictures: list[Image.Image], /) -> np.ndarray:
        """Normalized pixels [B, C, X, Y]."""
        ...


class Towers:
    """A CLIP with what it reads.

    Args:
        model: the CLIP.
        encoder: its tokenizer and picture processor.
        digest: names the model's weights, as `hf.load.folder_hash` does.
        mesh: where the model is; batches are spread over it. None is the first device.
        rules: logical to mesh axes.

    Attributes:
        digest: as given.
        dimension: D of the shared space.
    """

    def __init__(
        self,
        model: Clip,
        encoder: ClipPreprocessor,
        digest: str,
        mesh: Mesh | None = None,
        rules: Rules = DEFAULT_RULES,
    ):
        self._graphdef, self._state = nnx.split(model, graph=False)
        self._encoder, self.digest, self.mesh, self._rules = encoder, digest, mesh, rules
        self.dimension: int = model.config.projection_dim

    def full_batch(self, size: int) -> int:
        """``size``, rounded up to what the mesh divides."""
        parts = 1 if self.mesh is None else self.mesh.size
        return -(-size // parts) * parts

    def pixels(self, picture: Image.Image) -> Float[np.ndarray, "C X Y"]:
        """One picture as the model reads it."""
        return np.asarray(self._encoder.pictures([picture])[0], np.float32)

    def embed_pictures(self, pixels: Float[np.ndarray, "B C X Y"]) -> Float[Array, "B D"]:
        """Unit vectors of pictures; returns before the device is done."""
        return _embed_pictures(self._graphdef, self._state, self._spread(pixels))

    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> Float[np.ndarray, "N D"]:
        """Unit vectors of texts."""
        size, parts = self.full_batch(batch_size), [np.zeros((0, self.dimension), np.float32)]
        for start in range(0, len(texts), size):
            part = list(texts[start : start + size])
            arrays = self._encoder.texts(part + part[-1:] * (size - len(part)))
            ids = self._spread(np.asarray(arrays["input_ids"], np.int32))
            mask = self._spread(np.asarray(arrays["attention_mask"], bool))
            vectors = _embed_texts(self._graphdef, self._state, ids, mask)
            parts.append(np.asarray(vectors)[: len(part)])
        return np.concatenate(parts)

    def _spread(self, rows: np.ndarray) -> Any:
        if self.mesh is None:
            return rows
        return jax.device_put(rows, batch_sharding(self.mesh, self._rules, len(rows)))


@functools.partial(jax.jit, static_argnums=0)
def _embed_pictures(graphdef: Any, state: Any, pixels: Array) -> Array:
    return nnx.merge(graphdef, state).embed_pictures(pixels)


@functools.partial(jax.jit, static_argnums=0)
def _embed_texts(graphdef: Any, state: Any, ids: Array, mask: Array) -> Array:
    return nnx.merge(graphdef, state).embed_texts(ids, mask)
