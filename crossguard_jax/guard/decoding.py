"""A LLaVA's own words about a picture, where no label is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float
from crossguard_jax.data.prompts import neutralize
from crossguard_jax.guard.encoding import Encoder
from crossguard_jax.guard.prompting import Row
from crossguard_jax.hf.tokens import open_ended, padded
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


def answer_tokens(encoder: Encoder, answer: str, most: int) -> tuple[int, ...]:
    """The tokens of an answer where the prompt ends, closed, and at most ``most`` of them.

    Raises:
        UserError: the prompt's last token and the answer's first one are one.
    """
    tokenizer, prompt = encoder.tokenizer, encoder.settings.prompt
    start = prompt.render("a text", 0)
    ids = open_ended(tokenizer, [start])[0]
    words = neutralize(answer, tokenizer.all_special_tokens)
    whole = open_ended(tokenizer, [f"{start} {words}"])[0]
    if whole[: len(ids)] != ids:
        raise UserError(f"prompt {prompt.name!r}: end the template on a whole token")
    return tuple([*whole[len(ids) :], tokenizer.eos_token_id][:most])


@dataclass(frozen=True)
class Forced:
    """An answer behind its prompt.

    Attributes:
        row: all of it, tokenized.
        tokens: the answer's own.
    """

    row: Row
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, prompt: Row, tokens: tuple[int, ...]) -> "Forced":
        """A prompt's row with an answer's tokens behind it."""
        return cls(replace(prompt, ids=[*prompt.ids, *tokens]), tokens)


def answer_arrays(forced: Sequence[Forced], most: int) -> dict[str, np.ndarray]:
    """Where the answers are, for `Llava.read_from` and `attacks.logits.unlikely`.

    Args:
        forced: B.
        most: N, tokens of an answer at most.

    Returns:
        ``start`` int32 [B]; ``tokens`` int32 and ``answer_mask`` bool, [B, N].
    """
    starts = [len(each.row.ids) - len(each.tokens) for each in forced]
    tokens, mask = padded([each.tokens for each in forced], most)
    return {"start": np.array(starts, np.int32), "tokens": tokens, "answer_mask": mask}
