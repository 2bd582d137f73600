"""The rewards' models and the host's side of them (`judges` has the formulas).

What is done once a triplet, and the re-tokenization that each batch needs. No judge reads a part of
a text for the whole. On the host a long one is read in overlapping windows: the worst is its
safety, and the direction of their mean its vector. The compiled rewards have room for one window,
which what the rewriter may write fits into; what still does not, in the judges' own tokens, is not
read and earns nothing.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules
from crossguard_jax.core.typing import Float
from crossguard_jax.hf import tokens
from crossguard_jax.hf.clip import ClipEncoder, load_clip
from crossguard_jax.hf.configs import read_config
from crossguard_jax.hf.load import encoding_hash, resolve_folder
from crossguard_jax.hf.sentence import load_sentence
from crossguard_jax.impforge.rewards import overlap
from crossguard_jax.impforge.rewards.embedding import Embedder, WholeTexts, mean_direction, worst
from crossguard_jax.impforge.rewards.judges import Judges, cosine, safety_reward, unit_vectors
from crossguard_jax.impforge.rewards.loading import (
    check_semantic,
    fitting,
    load_safety,
    model_hash,
)
from crossguard_jax.impforge.rewards.texts import TextEncoder
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.io import images
from crossguard_jax.nn.clip import Clip
from crossguard_jax.nn.llama import LlamaConfig

WORD_LENGTH = 16  # CLIP tokens of a single word, or of a policy's token


class Rewards(Judges):
    """The judges of a rewriter's texts.

    Args:
        config: the ``rewards`` part of ``configs/impforge.py``.
        policy: the rewriter's folder, for its vocabulary.
        mesh: where the models go; None is the first device.
        rules: logical to mesh axes.
        cache: a folder that keeps the embedded vocabulary for the next time.
        new_tokens: the most tokens that the rewriter writes; the judges must have room for them.

    Attributes:
        frozen: the models' states and the vocabulary: an argument of every jitted function that
            calls `components` or `vectors`, never its closure.
        label_ids: the safety model's (safe, unsafe) tokens.
        hashes: of the models' folders.
        width: of `vectors`.

    Raises:
        UserError: a folder that is no such model, or a setting that does not fit it.
    """

    def __init__(
        self,
        config: Any,
        policy: str | Path,
        mesh: Mesh | None = None,
        rules: Rules = DEFAULT_RULES,
        cache: str | Path | None = None,
        new_tokens: int = 0,
    ):
        check_semantic(config.semantic)
        self._config, self._new = config, new_tokens
        placed = (config.dtype, mesh, rules)
        clip = load_clip(config.overlap.path, *placed)
        safety, self._read_safety = load_safety(config.safety, *placed)
        self._check_room("safety", self._read_safety.frame, "its prompt")
        self.hashes = {"overlap": f"{clip.digest} {encoding_hash(clip.folder)}"}
        self.hashes["safety"] = model_hash(resolve_folder(config.safety.path))
        judge: Any = clip.model
        tokenizer, room, self.width = clip.tokenizer, clip.context, clip.dimension
        prompt = ""
        if config.semantic.kind == "caption":
            sentence = load_sentence(config.semantic.path, *placed)
            judge, tokenizer, room = sentence.model, sentence.tokenizer, sentence.max_length
            self.width, prompt = sentence.model.config.hidden_size, sentence.prompts[""]
            self.hashes["semantic"] = model_hash(sentence.folder)
        tau = float(config.overlap.tau)
        super().__init__(safety, judge, self._read_safety.label_ids, tau)
        length = fitting("rewards.semantic.max_length", config.semantic.max_length, room)
        self._read = TextEncoder(tokenizer, length, prompt)
        self._check_room("semantic", self._beside([""])[0], "what stands around a text")
        self._texts = WholeTexts(
            Embedder(judge, unit_vectors, self._read.short, self.width, "text", mesh),
            self._read.windows,
            mean_direction,
        )
        read_word = TextEncoder(clip.tokenizer, min(WORD_LENGTH, clip.context))
        self._words = WholeTexts(
            Embedder(clip.model, unit_vectors, read_word.pad, clip.dimension, "word", mesh),
            read_word.windows,
            mean_direction,
        )
        self._pictures = Embedder(
            *(clip.model, Clip.embed_pictures, functools.partial(_pixels, clip)),
            *(clip.dimension, "picture", mesh),
        )
        self._safe = WholeTexts(
            Embedder(
                safety,
                lambda model, ids, mask: safety_reward(model, ids, mask, self.label_ids)[:, None],
                self._read_safety.pad,
                1,
                "text",
                mesh,
            ),
            self._read_safety.windows,
            worst,
        )
        table, special = self._vocabulary(policy, clip.dimension, cache)
        whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self.frozen |= {
            "vocabulary": jax.device_put(table, whole),
            "special": jax.device_put(special, whole),
        }

    def _vocabulary(
        self, policy: str | Path, width: int, cache: str | Path | None
    ) -> tuple[np.ndarray, np.ndarray]:
        folder = resolve_folder(policy)
        _, config = read_config(folder)
        if not isinstance(config, LlamaConfig):
            raise UserError(f"{policy}: a rewriter is a Llama, this is a {type(config).__name__}")
        size = config.vocab_size
        tokenizer = tokens.load_tokenizer(folder, size)
        return overlap.embed_vocabulary(
            self._words, width, tokenizer, size, cache, self.hashes["overlap"]
        )

    def _beside(self, captions: Sequence[str]) -> list[int]:
        """Tokens that the semantic model reads beside a text: of its prompt, and of captions."""
        join = self._config.semantic.join if self.by_caption else "{text}"
        return self._read.tokens([join.format(caption=caption, text="") for caption in captions])

    def _check_room(self, judge: str, beside: int, what: str) -> None:
        length, needed = self._config[judge].max_length, beside + self._new
        if needed > length:
            raise UserError(
                f"rewards.{judge}.max_length {length}: {what} takes {beside} tokens and a text up "
                f"to {self._new}; raise it to {needed} or more, or lower rewriter.max_new_tokens"
            )

    def context(self, triplets: Sequence[Triplet]) -> dict[str, np.ndarray]:
        """What is known of triplets before any rewriting, batched.

        Returns:
            ``picture`` [T, D], CLIP's unit vectors; ``query`` [T, E], the semantic model's;
            ``caption_alone`` [T], the semantic reward of no rewriting at all (of the caption, or
            the picture, alone), which a constant caption adds to every score. All float32.

        Raises:
            UserError: a picture that does not decode, or a caption beside which the semantic model
                has no room for a text.
        """
        for triplet, beside in zip(
            triplets, self._beside([t.shown for t in triplets]), strict=True
        ):
            self._check_room("semantic", beside, f"the caption of triplet {triplet.id!r}")
        picture = self._pictures(triplets)
        query = self.embed([t.query for t in triplets])
        alone = self.embed([t.shown for t in triplets]) if self.by_caption else picture
        caption_alone = np.asarray(cosine(alone, query))
        return {"picture": picture, "query": query, "caption_alone": caption_alone}

    def encode(self, texts: Sequence[str], triplets: Sequence[Triplet]) -> dict[str, np.ndarray]:
        """The re-tokenization of a batch, each array of one shape a batch size.

        Args:
            texts: the policy's, decoded without special tokens.
            triplets: each text's own.

        Returns:
            ``safety_ids, safety_mask``; ``text_ids, text_mask``; and, for ``caption``,
            ``joined_ids, joined_mask``. A row without a token is a text for which there is no room.
        """
        encoded = {"safety": self._read_safety(texts), "text": self._read(texts)}
        if self.by_caption:
            join, pairs = self._config.semantic.join, zip(texts, triplets, strict=True)
            encoded["joined"] = self._read([join.format(caption=t.shown, text=s) for s, t in pairs])
        arrays: dict[str, np.ndarray] = {}
        for name, (ids, mask) in encoded.items():
            arrays |= {f"{name}_ids": ids, f"{name}_mask": mask}
        return arrays

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "B D"]:
        """The same from texts of any length, on the host."""
        return self._texts(texts)

    def safe(self, texts: Sequence[str]) -> Float[np.ndarray, " B"]:
        """``p(safe | t)`` of texts by themselves, on the host, float32; of a long text, that of its
        worst window."""
        return self._safe(texts)[:, 0]

    def words(
        self, texts: Sequence[str], picture: Float[np.ndarray, "B D"]
    ) -> Float[np.ndarray, " B"]:
        """The overlap reward by whole words: for evaluation, on the host.

        Args:
            texts: the policy's, decoded.
            picture: the ``picture`` of each text's own `context`.
        """
        return overlap.overlap_of_words(texts, picture, self._words, self._tau)


def _pixels(clip: ClipEncoder, rows: Sequence[Triplet]) -> tuple[np.ndarray]:
    pictures = [images.decode(t.picture, f"the picture of {t.id}") for t in rows]
    return (clip.pictures(pictures),)
