"""The three rewards of the rewriter (ImpForge, arXiv 2510.17687), pure and vectorized.

- safety: ``p(safe | t)`` of a Llama-Guard-style text model, over its two label tokens;
- semantic: how near the picture with the text comes to the query, by a sentence encoder
  (``caption``: the caption before the text) or by CLIP (``clip_sum``: the sum of both embeddings);
- overlap: one less what the text gives away of the picture (`impforge.overlap`).

`Rewards` holds the models and the host's side of it: what is done once a triplet, and the
re-tokenization that each batch needs. No judge reads a part of a text for the whole. On the host a
long one is read in overlapping windows: the worst is its safety, and the direction of their mean
its vector. The compiled rewards have room for one window, which what the rewriter may write fits
into; what still does not, in the judges' own tokens, is not read and earns nothing.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules
from crossguard_jax.core.typing import Array, Bool, Float, Int
from crossguard_jax.hf import tokens
from crossguard_jax.hf.clip import ClipEncoder, load_clip
from crossguard_jax.hf.configs import read_config
from crossguard_jax.hf.load import encoding_hash, resolve_folder
from crossguard_jax.hf.sentence import load_sentence
from crossguard_jax.impforge.rewards import overlap
from crossguard_jax.impforge.rewards.embedding import Embedder, WholeTexts, mean_direction, worst
from crossguard_jax.impforge.rewards.loading import (
    check_semantic,
    fitting,
    load_safety,
    model_hash,
)
from crossguard_jax.impforge.rewards.texts import TextEncoder
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.io import images
from crossguard_jax.nn.bert import Bert
from crossguard_jax.nn.clip import Clip
from crossguard_jax.nn.llama import Llama, LlamaConfig

REWARDS = ("safety", "semantic", "overlap")
"""What is summed; a weight each."""

WORD_LENGTH = 16  # CLIP tokens of a single word, or of a policy's token


def safety_reward(
    model: Llama, ids: Int[Array, "B L"], mask: Bool[Array, "B L"], label_ids: tuple[int, int]
) -> Float[Array, " B"]:
    """``p(safe | t)``: softmax over the two label tokens behind the last token, float32.

    Args:
        model: of the Llama-Guard kind.
        ids: texts in its prompt (`texts.SafetyEncoder`).
        mask: False at padding, on either side; a row without a token gets 0.
        label_ids: the (safe, unsafe) tokens.
    """
    last = ids.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    x = model.hidden(model.embed_tokens(ids), mask, last=last)
    logits = model.head(x, jnp.asarray(label_ids))[:, 0].astype(jnp.float32)
    return jnp.where(mask.any(axis=1), jax.nn.softmax(logits)[:, 0], 0.0)


def caption_reward(
    model: Bert,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    query: Float[Array, "B D"],
) -> Float[Array, " B"]:
    """``cos(g(caption + text), g(query))`` with Sentence-BERT's ``g``, float32.

    Args:
        model: the sentence encoder.
        ids: captions with the texts behind them.
        mask: False at padding.
        query: sentence vectors of the queries.
    """
    return cosine(model.embed_sentences(ids, mask), query)


def clip_sum_reward(
    model: Clip,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    picture: Float[Array, "B D"],
    query: Float[Array, "B D"],
) -> Float[Array, " B"]:
    """``cos(u(picture) + u(text), u(query))`` with CLIP's unit vectors ``u``, float32.

    Args:
        model: CLIP.
        ids: the texts alone.
        mask: False at padding.
        picture: unit vectors of the pictures.
        query: unit vectors of the queries.
    """
    return cosine(picture + model.embed_texts(ids, mask), query)


def cosine(
    a: Float[Array | np.ndarray, "B D"], b: Float[Array | np.ndarray, "B D"]
) -> Float[Array, " B"]:
    """Cosines of rows, float32; 0 where one is zero."""
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / jnp.maximum(norms, 1e-12)


def total(components: Mapping[str, Any], weights: Mapping[str, Any]) -> Float[Array, " B"]:
    """The weighted sum of the rewards (paper: all weights equal), float32.

    Args:
        components: from `Rewards.components`.
        weights: one for each of ``REWARDS``; 0 is an ablation.

    Raises:
        UserError: a weight is missing, or for something else.
    """
    if set(weights) != set(REWARDS):
        raise UserError(
            f"rewards.weights has {', '.join(weights)}; give one for each of {', '.join(REWARDS)}"
        )
    parts = [jnp.float32(weights[name]) * components[name] for name in REWARDS]
    return parts[0] + parts[1] + parts[2]


class Rewards:
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
        self._config, self._tau, self._new = config, float(config.overlap.tau), new_tokens
        self.by_caption = config.semantic.kind == "caption"
        placed = (config.dtype, mesh, rules)
        clip = load_clip(config.overlap.path, *placed)
        safety, self._read_safety = load_safety(config.safety, *placed)
        self.label_ids = self._read_safety.label_ids
        self._check_room("safety", self._read_safety.frame, "its prompt")
        self.hashes = {"overlap": f"{clip.digest} {encoding_hash(clip.folder)}"}
        self.hashes["safety"] = model_hash(resolve_folder(config.safety.path))
        judge: Bert | Clip = clip.model
        tokenizer, room, self.width = clip.tokenizer, clip.context, clip.dimension
        prompt = ""
        if self.by_caption:
            sentence = load_sentence(config.semantic.path, *placed)
            judge, tokenizer, room = sentence.model, sentence.tokenizer, sentence.max_length
            self.width, prompt = sentence.model.config.hidden_size, sentence.prompts[""]
            self.hashes["semantic"] = model_hash(sentence.folder)
        length = fitting("rewards.semantic.max_length", config.semantic.max_length, room)
        self._read = TextEncoder(tokenizer, length, prompt)
        self._check_room("semantic", self._beside([""])[0], "what stands around a text")
        self._texts = WholeTexts(
            Embedder(judge, _vectors, self._read.short, self.width, "text", mesh),
            self._read.windows,
            mean_direction,
        )
        read_word = TextEncoder(clip.tokenizer, min(WORD_LENGTH, clip.context))
        self._words = WholeTexts(
            Embedder(clip.model, _vectors, read_word.pad, clip.dimension, "word", mesh),
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
        # Static halves; the arrays are everybody's arguments.
        self._safety, safety_state = nnx.split(safety, graph=False)
        self._judge, judge_state = nnx.split(judge, graph=False)
        table, special = self._vocabulary(policy, clip.dimension, cache)
        whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self.frozen: dict[str, Any] = {
            "safety": safety_state,
            "semantic": judge_state,
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
        picture = self._pictures([(t.id, t.image) for t in triplets])
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

    def components(
        self,
        frozen: dict[str, Any],
        tokens: Int[Array, "B N"],
        token_mask: Bool[Array, "B N"],
        context: Mapping[str, Any],
        encoded: Mapping[str, Any],
    ) -> dict[str, Float[Array, " B"]]:
        """The rewards of a batch, pure.

        A text that says nothing earns nothing, whatever the judges think of nothing; and so does
        one that a judge has no room for: a part of it would speak for the whole.

        Args:
            frozen: `frozen`.
            tokens: the policy's texts.
            token_mask: False at padding.
            context: rows of `context`, a row a text.
            encoded: from `encode`.

        Returns:
            ``safety``, ``semantic``, ``overlap``; and for the record ``caption_alone``, ``empty``
            (1 for a text that says nothing) and ``unread`` (1 for one without room). All float32.
        """
        e = encoded
        safety_model = nnx.merge(self._safety, frozen["safety"])
        safety = safety_reward(safety_model, e["safety_ids"], e["safety_mask"], self.label_ids)
        judge: Any = nnx.merge(self._judge, frozen["semantic"])
        picture, query = context["picture"], context["query"]
        if self.by_caption:
            semantic = caption_reward(judge, e["joined_ids"], e["joined_mask"], query)
        else:
            semantic = clip_sum_reward(judge, e["text_ids"], e["text_mask"], picture, query)
        vocabulary, special = frozen["vocabulary"], frozen["special"]
        empty = overlap.empty_texts(tokens, token_mask, special)
        read = _was_read(encoded)
        nothing = empty | ~read
        shown = overlap.overlap_reward(tokens, token_mask, vocabulary, special, picture, self._tau)
        return {
            "safety": jnp.where(nothing, 0.0, safety),
            "semantic": jnp.where(nothing, 0.0, semantic),
            "overlap": jnp.where(nothing, 0.0, shown),
            "caption_alone": context["caption_alone"],
            "empty": empty.astype(jnp.float32),
            "unread": 1.0 - read.astype(jnp.float32),
        }

    def vectors(self, frozen: dict[str, Any], encoded: Mapping[str, Any]) -> Float[Array, "B D"]:
        """The semantic model's unit vectors of the texts alone, pure; for an archive. Zero for a
        text that a judge has no room for."""
        judge: Any = nnx.merge(self._judge, frozen["semantic"])
        vectors = _vectors(judge, encoded["text_ids"], encoded["text_mask"])
        return jnp.where(_was_read(encoded)[:, None], vectors, 0.0)

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


def _was_read(encoded: Mapping[str, Any]) -> Bool[Array, " B"]:
    """Texts for which every judge has room; see `Rewards.encode`."""
    masks = [jnp.asarray(value) for name, value in encoded.items() if name.endswith("_mask")]
    return functools.reduce(operator.and_, [mask.any(axis=1) for mask in masks])


def _pixels(clip: ClipEncoder, rows: Sequence[tuple[str, bytes]]) -> tuple[np.ndarray]:
    pictures = [images.decode(data, f"the picture of {name}") for name, data in rows]
    return (clip.pictures(pictures),)


def _vectors(model: Bert | Clip, ids: Array, mask: Array) -> Array:
    if isinstance(model, Clip):
        return model.embed_texts(ids, mask)
    x = model.embed_sentences(ids, mask)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)
