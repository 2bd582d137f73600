"""CLIP from any of its three sources, with what makes arrays of texts and pictures."""

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules
from crossguard_jax.core.typing import Float
from crossguard_jax.hf import open_clip, tokens
from crossguard_jax.hf.folder import CONFIG, weight_files, weights_name
from crossguard_jax.hf.load import load_model, resolve_folder
from crossguard_jax.hf.pictures import Processor
from crossguard_jax.io import images
from crossguard_jax.nn.clip import Clip

BPE = "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI's vocabulary of CLIP, as its own code and open_clip's and open_clip_jax's carry it."""

_N_MERGES = 49152 - 256 - 2  # of OpenAI's file, which holds more

Pixels = Callable[[Image.Image], np.ndarray]


@dataclass(frozen=True)
class ClipEncoder:
    """A CLIP and what its texts and pictures go through, the same for every source.

    Example:
        >>> encoder = load_clip("toy://clip")
        >>> batch = encoder.texts(["a red kettle"])
        >>> encoder.model.embed_texts(batch["input_ids"], batch["attention_mask"])
        >>> encoder.model.embed_pictures(encoder.pictures([picture]))

    Attributes:
        model: both towers.
        tokenizer: transformers' tokenizer.
        picture: one RGB picture to normalized pixels, float32 [C, X, X].
        source: ``transformers``, ``open_clip`` or ``open_clip_jax``.
        folder: where it comes from.
        digest: of the weights, the settings, the way to pixels and the dtype: vectors of pictures
            may be kept for as long as it stays the same.
    """

    model: Clip
    tokenizer: Any
    picture: Pixels
    source: str
    folder: Path
    digest: str

    @property
    def context(self) -> int:
        """The most tokens of a text; the rest is cut, the end-of-text token kept."""
        return self.model.config.text.max_position_embeddings

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.model.config.projection_dim

    def texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """``input_ids`` (int32) and ``attention_mask`` (bool), [B, L], padded on the right."""
        return tokens.encode(self.tokenizer, texts, self.context)

    def pictures(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "M C X Y"]:
        """Normalized pixels of pictures, float32."""
        vision = self.model.config.vision
        out = np.zeros((len(pictures), vision.num_channels, *[vision.image_size] * 2), np.float32)
        for i, picture in enumerate(pictures):
            out[i] = self.picture(images.rgb(picture))
        return out


def load_clip(
    path: str | Path,
    dtype: str | None = "float32",
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
    **options: Any,
) -> ClipEncoder:
    """A CLIP from a transformers folder, an open_clip folder or an open_clip_jax parameter tree.

    A folder that holds transformers' and open_clip's layout of one model is read as transformers'.

    Args:
        path: a folder: ``config.json`` with ``*.safetensors``, ``open_clip_config.json`` with
            ``open_clip_model.safetensors``, or one ``*.pkl``; or that .pkl itself. ``toy://clip``
            is the small one of the package. The tokenizer lies in the same folder: transformers'
            files, or OpenAI's ``bpe_simple_vocab_16e6.txt.gz``.
        dtype, mesh, rules, options: as in `hf.load.load_model`.

    Raises:
        UserError: whatever is wrong with the folder, in one message.
    """
    tree = Path(path) if str(path).endswith(".pkl") and Path(path).is_file() else None
    folder = tree.parent if tree else resolve_folder(path)
    source = "open_clip_jax" if tree else _source(folder)
    settings = (dtype, mesh, rules)
    picture: Pixels
    if source == "transformers":
        model = load_model(folder, *settings, **options)
        if not isinstance(model, Clip):
            raise UserError(f"{folder}: a {type(model).__name__}, not a CLIP")
        picture = Processor(folder, model.config.vision.image_size)
        names = (*weight_files(folder), "preprocessor_config.json", "processor_config.json")
        files = [f for f in (folder / n for n in (CONFIG, *names)) if f.is_file()]
    elif source == "open_clip":
        model, picture, files = open_clip.load_open_clip(folder, *settings, **options)
    else:
        tree = tree or next(folder.glob("*.pkl"))
        model, picture, files = open_clip.load_open_clip_jax(tree, *settings, **options)
    tokenizer = _tokenizer(folder, model.config.text.vocab_size)
    _check_end(tokenizer, model.config.text.eos_token_id, folder)
    return ClipEncoder(model, tokenizer, picture, source, folder, _digest(files, dtype))


def _source(folder: Path) -> str:
    config = (folder / CONFIG).is_file()
    if config and weights_name(folder):
        return "transformers"
    if (folder / open_clip.CONFIG).is_file():
        return "open_clip"
    trees = sorted(path.name for path in folder.glob("*.pkl"))
    if len(trees) > 1:
        raise UserError(f"{folder}: {', '.join(trees)}: give the path of one of them")
    if trees:
        return "open_clip_jax"
    if config:
        return "transformers"
    raise UserError(
        f"{folder}: no CLIP; give a folder with config.json and *.safetensors, with "
        f"{open_clip.CONFIG} and {open_clip.WEIGHTS[0]}, or with open_clip_jax's *.pkl"
    )


def _tokenizer(folder: Path, vocab_size: int) -> Any:
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return tokens.load_tokenizer(folder, vocab_size)
    if (folder / BPE).is_file():
        tokenizer = _openai_tokenizer(folder / BPE)
        tokens.check_fit(tokenizer, vocab_size, folder)
        return tokenizer
    raise UserError(
        f"{folder}: no tokenizer; put CLIP's tokenizer.json and tokenizer_config.json there, or "
        f"{BPE}"
    )


def _openai_tokenizer(path: Path) -> Any:
    """CLIP's tokenizer from OpenAI's file: a version line, then a merge a line."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")[1 : 1 + _N_MERGES]
        pairs = [(first, second) for first, second in (line.split() for line in lines if line)]
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: unreadable ({error}); download it again") from error
    # Printable bytes in their order, then the others, by the characters that stand for them.
    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(f"{c}</w>" for c in alphabet), *map("".join, pairs)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    merges: Any = pairs
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges)


def _check_end(tokenizer: Any, eos: int, folder: Path) -> None:
    """The text tower pools at the end-of-text token: every text must end with it."""
    ids = tokenizer("a kettle")["input_ids"]
    end = int(np.argmax(ids)) if eos == open_clip.HIGHEST else (ids + [eos]).index(eos)
    if end != len(ids) - 1:
        raise UserError(
            f"{folder}: the tokenizer does not end a text with the model's end-of-text token; it "
            "is another model's"
        )


def _digest(files: Sequence[Path], dtype: str | None) -> str:
    """SHA-256 over files and the dtype of the arithmetic."""
    h = hashlib.sha256(json.dumps(dtype).encode())
    for file in files:
        h.update(file.name.encode())
        with file.open("rb") as handle:
            h.update(hashlib.file_digest(handle, "sha256").digest())
    return h.hexdigest()
