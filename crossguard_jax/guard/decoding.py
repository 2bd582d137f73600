"""A LLaVA's own words about a picture, where no label is asked for."""

import jax

from crossguard_jax.core.typing import Array, Float
from crossguard_jax.guard.encoding import Encoder
from crossguard_jax.nn import sampling
from crossguard_jax.nn.llava import Llava


def likeliest(
    model: Llava,
    encoder: Encoder,
    batch: dict[str, Array],
    pixels: Float[Array, "N C X Y"] | None,
    max_new_tokens: int,
) -> sampling.Sampled:
    """The greedy answers to a batch of prompts, to be traced.

    Args:
        model: the LLaVA.
        encoder: its tokenizer's ids of padding and of the end.
        batch: ``input_ids`` and ``attention_mask`` of `Encoder.pad`, [B, L], and ``picture_index``
            unless prompt i shows picture i.
        pixels: what `Llava.embed` takes; None where no prompt has a picture.
        max_new_tokens: of an answer.
    """
    return sampling.sample(
        model.language_model,
        model.embed(batch["input_ids"], pixels, picture_index=batch.get("picture_index")),
        batch["attention_mask"].astype(bool),
        jax.random.key(0),  # nothing is drawn at temperature 0
        max_new_tokens=max_new_tokens,
        eos_ids=(encoder.tokenizer.eos_token_id,),
        pad_id=encoder.pad_id,
        temperature=0.0,
    )
