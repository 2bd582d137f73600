"""The small CLIP with its own tokenizer and processor, and pictures of the small world."""

import functools

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from crossguard_jax.data.library import Picture
from crossguard_jax.hf.load import folder_hash, load_model, resolve_folder
from crossguard_jax.impforge.matching.towers import Towers
from crossguard_jax.toy.world.sources import records

CLIP = "toy://clip"


class HubEncoder:
    """What transformers makes of a folder's texts and pictures."""

    def __init__(self) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        folder = str(resolve_folder(CLIP))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = AutoImageProcessor.from_pretrained(folder)

    def texts(self, texts: list[str]) -> dict[str, np.ndarray]:
        return dict(self.tokenizer(texts, padding=True, return_tensors="np"))

    def pictures(self, pictures: list[Image.Image]) -> np.ndarray:
        return self.processor(pictures, return_tensors="np")["pixel_values"]


@functools.cache
def towers(mesh: Mesh | None = None) -> Towers:
    model = load_model(CLIP, mesh=mesh)
    return Towers(model, HubEncoder(), folder_hash(resolve_folder(CLIP)), mesh)


def picture(id: str, image: bytes, caption: str = "") -> Picture:
    return Picture(id, lambda: image, caption, {"file": f"{id}.png", "library": "test"})


@functools.cache
def world_pictures(n: int, seed: int = 0) -> tuple[Picture, ...]:
    """Pictures with a caption that names what is in them."""
    drawn = records("captions", "val", n, seed)
    return tuple(picture(r.id, r.image or b"", r.text) for r in drawn)
