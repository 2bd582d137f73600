"""Which tokens of a prompt are the user's own: over templates, tokenizers and texts."""

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from crossguard_jax.data.prompts import TEMPLATES, PromptTemplate
from crossguard_jax.guard.turns import user_span

IMAGE = "<image>"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", IMAGE]
BARE = PromptTemplate("bare", "USER:{image}{text}\nASSISTANT:", "safe", "unsafe")
TIGHT = PromptTemplate("tight", "[{image}({text})] ASSISTANT:", "safe", "unsafe")
PROMPTS = [*TEMPLATES.values(), BARE, TIGHT]
WORDS = ["can i", "touch it ?", "USER", "ASSISTANT", "Text", "safe", "Answer with one word", "a"]
WORDS += [
    " ",
    "  ",
    "\n",
    "(",
    ")",
    ".",
    "\u00fc",
    "\u1ed9",
    "\u6c34",
    "\U0001f525",
    "\u200b",
    "\ufb01",
]


def byte_level(prefix, trimmed):
    """As GPT-2's and Llama 3's: bytes, a character in several tokens, a space before a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, processors.ByteLevel(trim_offsets=trimmed)


def sentence_piece(scheme):
    """As Llama 2's: a mark for each space, and bytes for what has no token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    steps = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer, None


def normalized():
    """Llama 2's first form: spaces become marks in the normalizer, and a word may hold several."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    marks = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence(marks)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer, None


def whole_words():
    """As the small world's: words and marks."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, None


KINDS = {
    "byte_level": lambda: byte_level(False, True),
    "byte_level_untrimmed": lambda: byte_level(False, False),
    "byte_level_prefix": lambda: byte_level(True, True),
    "sentence_piece": lambda: sentence_piece("first"),
    "sentence_piece_always": lambda: sentence_piece("always"),
    "normalized": normalized,
    "whole_words": whole_words,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    made, processor = KINDS[request.param]()
    trainer = {models.WordPiece: trainers.WordPieceTrainer}.get(
        type(made.model), trainers.BpeTrainer
    )
    options = {"vocab_size": 420, "special_tokens": SPECIAL, "show_progress": False}
    options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    corpus = [prompt.template for prompt in PROMPTS] + WORDS * 3 + ["touch it ? can i"] * 4
    made.train_from_iterator(corpus, trainer(**options))
    begins = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.post_processor = processors.Sequence([*filter(None, [processor]), begins])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE},
    )


def characters(text):
    """A text without what no token stands for by itself."""
    return "".join(text.split())


def filled(text):
    """A text's characters that are no space: tokenizers put those where they like."""
    return "".join(text.split())


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.name)
def test_the_users_tokens_hold_his_text_and_nothing_of_the_prompt(tokenizer, prompt):
    rng = np.random.default_rng(0)
    marks = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    exact = 0
    for pictures in (0, 2):
        before, behind = prompt.around(pictures, IMAGE * 3)
        for _ in range(40):
            text = "".join(rng.choice(WORDS, rng.integers(0, 8)))
            whole, start, end = before + text + behind, len(before), len(before) + len(text)
            encoded = tokenizer(whole, return_offsets_mapping=True)
            ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
            first, last = user_span(offsets, whole, start, end)
            assert not marks & {*ids[first:last]}
            places = [place for a, b in offsets[first:last] for place in range(a, b)]
            assert not filled("".join(whole[i] for i in places if not start <= i < end)), text
            # All of the text is his, but for what shares a token with the prompt.
            others = [(a, b) for a, b in offsets[:first] + offsets[last:] if a < end and b > start]
            left = [(a, b) for a, b in others if filled(whole[max(a, start) : min(b, end)])]
            assert all(filled(whole[a:start]) or b > end for a, b in left), text
            if not left and tokenizer.unk_token_id not in ids[first:last]:
                decoded = tokenizer.decode(ids[first:last]).replace("##", "")
                assert filled(decoded) == filled(text)
                exact += 1
    assert exact > 24, "hardly a text comes back: nothing would show"
