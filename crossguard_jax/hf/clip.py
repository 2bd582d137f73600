"""CLIP from any of its three sources, with what makes arrays of texts and pictures.

Its text tower goes alone, too: what another model needs of a CLIP that reads texts for it.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules
from crossguard_jax.core.typing import Float
from crossguard_jax.hf import open_clip, tokens
from crossguard_jax.hf.export import hub_tensors, write_weights
from crossguard_jax.hf.folder import CONFIG, read_object, weight_files, weights_name
from crossguard_jax.hf.load import load_model, resolve_folder
from crossguard_jax.hf.pictures import Processor
from crossguard_jax.io import images
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.nn.clip import Clip, ClipText
from crossguard_jax.runtime import processes

BPE = "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI's vocabulary of CLIP, as its own code and open_clip's and open_clip_jax's carry it."""

TEXT_MODEL = "clip_text_model"
"""The Hub's ``model_type`` of a text tower alone."""

_TEXT_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("hidden_act", "layer_norm_eps", "vocab_size", "max_position_embeddings", "eos_token_id"),
)
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
    def text_tower(self) -> "TextTower":
        """What reads texts."""
        return TextTower(self.model.text_model, self.tokenizer)

    @property
    def context(self) -> int:
        """As the text tower's."""
        return self.text_tower.context

    @property
    def normalization(self) -> tuple[Float[np.ndarray, "3 1 1"], Float[np.ndarray, "3 1 1"]]:
        """Mean and standard deviation that pixels in [0, 1] are normalized by.

        Whatever the processor is, the way is a line for each channel: a black and a white picture
        tell which.
        """
        side = self.model.config.vision.image_size
        black, white = (
            self.picture(Image.new("RGB", (side, side), (level,) * 3))[:, :1, :1]
            for level in (0, 255)
        )
        std = 1 / (white - black)
        return -black * std, std

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.model.config.projection_dim

    def texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """``input_ids`` (int32) and ``attention_mask`` (bool), [B, L], padded on the right."""
        return self.text_tower.texts(texts)

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


@dataclass(frozen=True)
class TextTower:
    """A CLIP's text tower and its tokenizer, without the picture tower and the projections.

    Example:
        >>> save_text_tower("runs/text", load_clip("toy://clip").text_tower)
        >>> tower = load_text_tower("runs/text")
        >>> batch = tower.texts(["a red kettle"])
        >>> tower.model(batch["input_ids"], batch["attention_mask"])  # [B, D]

    Attributes:
        model: the tower.
        tokenizer: transformers' tokenizer.
    """

    model: ClipText
    tokenizer: Any

    @property
    def context(self) -> int:
        """The most tokens of a text; the rest is cut, the end-of-text token kept."""
        return self.model.config.max_position_embeddings

    def texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """``input_ids`` (int32) and ``attention_mask`` (bool), [B, L], padded on the right."""
        return tokens.encode(self.tokenizer, texts, self.context)


def save_text_tower(folder: str | Path, tower: TextTower) -> None:
    """Writes a text tower as the folder of a transformers ``CLIPTextModel`` with its tokenizer.

    Weights are written in the narrowest type that holds all of them exactly, which is that of the
    file they were read from, also where they were cast to a wider one on the way. Nothing in the
    folder says where the tower came from. Of several processes, which all call it, the first
    writes.

    Args:
        folder: is made; files of the same names are replaced.
        tower: of `load_text_tower` or `ClipEncoder.text_tower`.
    """
    folder = Path(folder)
    dtype = _narrowest(tower.model)
    config = tower.model.config
    settings = {name: getattr(config, name) for name in _TEXT_FIELDS}
    for name in ("bos_token_id", "pad_token_id"):
        settings[name] = getattr(tower.tokenizer, name)
    settings |= {"architectures": ["CLIPTextModel"], "model_type": TEXT_MODEL, "dtype": dtype}
    tensors = hub_tensors(tower.model)

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tower.tokenizer.save_pretrained(str(folder))
        write_weights(tensors, folder, jnp.dtype(dtype))
        write_atomic(folder / CONFIG, json.dumps(settings, indent=2, sort_keys=True) + "\n")

    processes.by_first(write, beside=tensors)


def load_text_tower(
    path: str | Path,
    dtype: str | None = "float32",
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
    **options: Any,
) -> TextTower:
    """A text tower: what `save_text_tower` wrote, or that of any CLIP that `load_clip` reads.

    Args:
        path: a folder, or whatever `load_clip` takes.
        dtype, mesh, rules, options: as in `hf.load.load_model`.

    Raises:
        UserError: whatever is wrong with the folder, in one message.
    """
    config = Path(path) / CONFIG
    if not config.is_file() or read_object(config).get("model_type") != TEXT_MODEL:
        return load_clip(path, dtype, mesh, rules, **options).text_tower
    model = load_model(path, dtype, mesh, rules, **options)
    assert isinstance(model, ClipText)
    tokenizer = _tokenizer(Path(path), model.config.vocab_size)
    _check_end(tokenizer, model.config.eos_token_id, Path(path))
    return TextTower(model, tokenizer)


def _narrowest(model: ClipText) -> str:
    """The narrowest float type that holds every weight of a model as it is."""
    weights = [value for _, value in hub_tensors(model)]
    with np.errstate(over="ignore"):  # what float16 cannot hold comes back as infinity
        for name in ("bfloat16", "float16"):
            dtype = jnp.dtype(name)
            if all(np.array_equal(w, w.astype(dtype).astype(w.dtype)) for w in weights):
                return name
    return str(weights[0].dtype)


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
