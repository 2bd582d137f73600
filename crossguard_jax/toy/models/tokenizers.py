"""The small world's one vocabulary, as fast tokenizers of the Hub's formats.

All small models share it: whole words for what the world says and for plain English, pieces and
single characters for the rest, so that an unknown word becomes its letters and not ``<unk>``.
"""

import functools
import string
from typing import Any

from crossguard_jax.data.prompts import TEMPLATES
from crossguard_jax.toy.world.examples import SPLITS
from crossguard_jax.toy.world.sources import DERIVED, SOURCES, TESTED, examples
from crossguard_jax.toy.world.vqa import words

SPECIAL = ("<pad>", "<s>", "<unk>", "</s>", "<image>")
"""Ids 0 to 4. ``</s>`` is not id 2, which CLIP's configs read as "the highest id of the row"."""

PAD, BOS, UNK, EOS, IMAGE = range(len(SPECIAL))

_ENGLISH = """
a about above across after again all almost along also always am among an and another any anything
are around as at atleast away back bad base bases be because been before behind below beside best
better between big bigger black block blocks both box boxes but by can chat circle circles close
closely closer cold color colored colors colour colours contain contains corner could day describe
did different dish do does done down each edge edges eight either else empty end enough even ever
every everything exactly far fast few five for four from full get glad go going good green grey had
half has have having he height her here high higher his hold hot house how i if in inside
instruction is it item items its just keep kind know large larger last least left less let like
line little list long look low lower made make man many may me mean medium middle more most much
multiple must my name near nearest need never new next nine no none not nothing now number object
objects of off old on once one only open or orange other others our out over own part people person
picture place please point put quite rectangle red right room round row said same say second see
seen seven several shape shapes she should show side sides similar single six size small smaller so
some something sometimes soon spell square squares stack stacked still stop such sure take tall
tell ten than that the their them then there these they thing things think this those three time to
together too top total touch touches touching tower towers triangle triangles true false try two
under until up upon us use user very wall want was water way we well were what when where which
while white who whole why wide will with within without word words work world would write yellow
yes yet you your safe unsafe assistant
"""
_PIECES = "able al an ar ation ed en er es est ing ion le ly ment ness or ous re st tion un".split()


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every token, in the order of its id."""
    entries: set[str] = set(_ENGLISH.split())
    for template in TEMPLATES.values():
        entries |= set(words(template.template.format(image="", text="")))
    for source in SOURCES:
        if source in DERIVED or source in TESTED:  # words that are here, or are spelled
            continue
        for split in SPLITS:
            if (source, split) == ("implicit_heldout", "train"):
                continue
            for row in examples(source, split, 1500):
                entries |= set(words(f"{row.text} {row.answer}"))
    printable = [chr(code) for code in range(33, 127) if chr(code) not in string.ascii_uppercase]
    alphabet = string.ascii_lowercase + string.digits
    continued = [f"##{piece}" for piece in (*alphabet, *_PIECES)]
    whole = sorted(word for word in entries if len(word) > 1)
    return (*SPECIAL, *printable, *continued, *whole)


@functools.cache
def token_ids() -> dict[str, int]:
    """The id of every token."""
    return {token: i for i, token in enumerate(vocabulary())}


def build_tokenizer(begin: bool = True, end: bool = False, max_length: int = 256) -> Any:
    """A fast tokenizer over :func:`vocabulary`.

    Args:
        begin: whether a text begins with ``<s>``, as Llama's does.
        end: whether it ends with ``</s>``, as CLIP's and BERT's do.
        max_length: the most tokens the model takes.

    Returns:
        A transformers ``PreTrainedTokenizerFast``.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(token_ids(), unk_token="<unk>", max_input_chars_per_word=40))
    core.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    frame = f"{'<s> ' if begin else ''}$A{' </s>' if end else ''}"
    core.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
