"""The picture models of the small world in training, before any guard.

One run teaches a picture tower, a text tower and a language model together: captions by contrast
(CLIP, arXiv 2103.00020), and by next-token loss on the answers alone (LLaVA, arXiv 2304.08485)
captions, ordinary questions, the reading of written words, and what is known in words (`lessons`).
Beside that each patch learns the words for what it shows: with tens of millions of captions LLaVA
finds them by itself, here there is no time.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from crossguard_jax.core.typing import Array, Float, Int, PRNGKeyArray
from crossguard_jax.nn.clip import Clip, ClipConfig, ClipText
from crossguard_jax.nn.layers import Linear
from crossguard_jax.nn.llava import Llava, LlavaConfig
from crossguard_jax.toy.models.folders import MEAN, STD
from crossguard_jax.toy.models.texts import answer_nll, contrast
from crossguard_jax.toy.models.tokenizers import PAD

CONTRAST_WEIGHT, PATCH_WEIGHT = 0.2, 0.3
_ANSWERS = 56  # the most answer tokens that any row has
_FIRST_PATCH = 3  # after <s>, "user" and ":"


def normalize(pixels: UInt8[Array, "M X Y C"]) -> Float[Array, "M C X Y"]:
    """What the processors make of a picture of the world."""
    x = pixels.astype(jnp.float32) / 255
    return ((x - jnp.asarray(MEAN)) / jnp.asarray(STD)).transpose(0, 3, 1, 2)


class Base(nnx.Module):
    """A LLaVA and, on the same picture tower, a CLIP."""

    def __init__(self, llava: LlavaConfig, clip: ClipConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.llava = Llava(llava, keys[0])
        self.text_model = ClipText(clip.text, keys[1])
        d = clip.projection_dim
        self.visual_projection = Linear(
            clip.vision.hidden_size, d, keys[2], ("embed", None), bias=False
        )
        self.text_projection = Linear(
            clip.text.hidden_size, d, keys[3], ("embed", None), bias=False
        )
        self.logit_scale = nnx.Param(jnp.asarray(2.6592), axes=())
        self.clip_config = clip
        # The usual 0.02 is small beside what 128 channels add to it, and so short a run has no
        # steps to lose until places and words are heard.
        for table, times in (
            (self.llava.vision_tower.position_embedding, 25.0),
            (self.llava.language_model.embed_tokens, 5.0),
            (self.text_model.token_embedding, 5.0),
            (self.text_model.position_embedding, 5.0),
        ):
            table.embedding[...] = times * table.embedding[...]

    def clip(self) -> Clip:
        """The CLIP, sharing its arrays with this model."""
        clip = jax.eval_shape(lambda: Clip(self.clip_config, jax.random.key(0)))
        clip.vision_model = self.llava.vision_tower
        for name in ("text_model", "visual_projection", "text_projection", "logit_scale"):
            setattr(clip, name, getattr(self, name))
        return clip

    def similarity(
        self, pooled: Float[Array, "N D"], captions: Int[Array, "N L"]
    ) -> Float[Array, "N N"]:
        """Scaled cosines, picture by caption; the scale stops at 100, as CLIP's does."""
        pictures = self.visual_projection(pooled)
        texts = self.text_projection(self.text_model(captions, captions != PAD))
        pictures, texts = (
            x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (pictures, texts)
        )
        return jnp.exp(jnp.minimum(self.logit_scale[...], np.log(100))) * pictures @ texts.T


def states(
    model: Llava, ids: Int[Array, "B L"], features: Float[Array, "M P D"]
) -> Float[Array, "B L D"]:
    """The language model's last states; the first M rows have a picture, at its usual place.

    Args:
        model: the LLaVA.
        ids: tokens.
        features: the pictures, in the language model's space.
    """
    lm = model.language_model
    x = lm.embed_tokens(ids)
    patches = slice(_FIRST_PATCH, _FIRST_PATCH + features.shape[1])
    return lm.hidden(x.at[: features.shape[0], patches].set(features), ids != PAD)


def base_loss(model: Base, batch: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Loss of the answers, plus the weighted losses of captions and of patches, all in nats."""
    tower, lm = model.llava.vision_tower, model.llava.language_model
    penultimate, last = tower.hidden_states(normalize(batch["pixels"]), (-2, -1))
    features = model.llava.multi_modal_projector(penultimate[:, 1:])
    x = states(model.llava, batch["ids"][:, :-1], features)
    target, weight = batch["ids"][:, 1:], batch["answers"][:, 1:]
    # Few tokens are answers: the head sees no other.
    places = jnp.argsort(~weight, axis=1, stable=True)[:, :_ANSWERS]
    target, weight = (jnp.take_along_axis(a, places, axis=1) for a in (target, weight))
    logits = lm.head(jnp.take_along_axis(x, places[..., None], axis=1))
    answers, right = answer_nll(logits, target, weight)
    pooled = tower.post_layernorm(last[: batch["captions"].shape[0], 0])
    matched, retrieved = contrast(model.similarity(pooled, batch["captions"]))
    scale = jnp.sqrt((features * features).mean(-1, keepdims=True) + 1e-6)
    named = jax.nn.log_softmax(lm.head(features / scale), axis=-1)
    there = batch["patches"] != PAD
    patches = -(jnp.take_along_axis(named, batch["patches"], axis=-1) * there).sum() / there.sum()
    metrics = {
        "answers": answers,
        "contrast": matched,
        "patches": patches,
        "right": right,
        "retrieved": retrieved,
    }
    return answers + CONTRAST_WEIGHT * matched + PATCH_WEIGHT * patches, metrics
