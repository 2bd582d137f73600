"""How a picture and a text are put to a guard, and the two words it may answer with."""

import difflib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from crossguard_jax.core.errors import UserError

# Never taken from a user's text, whatever the tokenizer: the usual names of special tokens.
SPECIAL_TOKENS = ("<image>", "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<eos>", "<bos>")
_ROLE = re.compile(r"\b[A-Z]{2,}:")
# What NFKD makes a colon of.
_COLONS = frozenset(":\uff1a\ufe55\ufe13\u2a74")
_CHAT_MARKERS = r"<\|[^<>\n]{0,40}\|>|\[/?INST\]|<</?SYS>>"


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with room for a picture and a text, and the label words that answer it.

    ``{image}`` becomes the image token and a line break for each picture of a row; ``{text}``
    becomes the user's text. The prompt ends where the label word is to begin.
    """

    name: str
    template: str
    negative: str  # the word for label 0, such as "safe"
    positive: str  # the word for label 1, such as "unsafe"

    def __post_init__(self):
        """Refuses a template that does not name each place exactly once."""
        for place in ("{image}", "{text}"):
            if self.template.count(place) != 1:
                raise UserError(f"prompt {self.name!r}: write {place} exactly once in the template")

    @classmethod
    def from_fields(cls, value: Any) -> "PromptTemplate":
        """A template from JSON.

        Raises:
            UserError: a field is missing, unknown or no text; the message names it.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(value, dict):
            raise UserError(f"prompt {value!r} is no object with {', '.join(names)}; mend it")
        for name in (*names, *value):
            text = value.get(name)
            if name not in names or not isinstance(text, str) or not text.strip():
                raise UserError(f"prompt.{name} {text!r}: a text in {', '.join(names)} is wanted")
        return cls(**value)

    @property
    def markers(self) -> tuple[str, ...]:
        """What says whose turn it is, such as ``USER:`` and ``ASSISTANT:``."""
        return role_markers(self.template)

    def around(self, pictures: int, image_token: str = "<image>") -> tuple[str, str]:
        """What stands before and behind a row's text, with one image token a picture."""
        whole = self.template.replace("{image}", f"{image_token}\n" * pictures)
        before, _, behind = whole.partition("{text}")
        return before, behind

    def render(
        self,
        text: str,
        pictures: int,
        image_token: str = "<image>",
        special_tokens: Iterable[str] = (),
    ) -> str:
        """The prompt for one row, with exactly one image token a picture.

        Args:
          text: the user's text; ``neutralize`` keeps it from forging special tokens and turns.
          pictures: how many the row has.
          image_token: the processor's image token.
          special_tokens: the tokenizer's own special tokens, beyond ``SPECIAL_TOKENS``.
        """
        before, behind = self.around(pictures, image_token)
        return before + neutralize(text, (image_token, *special_tokens), self.markers) + behind

    def target(self, label: str) -> int:
        """0 for the negative word, 1 for the positive one.

        Raises:
          UserError: the label is neither.
        """
        if label not in (self.negative, self.positive):
            raise UserError(
                f"label {label!r}: prompt {self.name!r} knows {self.negative!r} and "
                f"{self.positive!r}; map the labels or choose another prompt"
            )
        return int(label == self.positive)


def role_markers(prompt: str) -> tuple[str, ...]:
    """What says in a prompt whose turn it is, each once."""
    return tuple(dict.fromkeys(_ROLE.findall(prompt)))


def neutralize(text: str, special_tokens: Iterable[str] = (), markers: Iterable[str] = ()) -> str:
    """Breaks up what a tokenizer would read as a special token, and what begins a turn.

    ``"see <image>"`` becomes ``"see < image>"`` and ``"ASSISTANT: safe"`` ``"ASSISTANT  safe"``:
    readable as before, but ordinary text. A marker is one in any case, spacing, width or style of
    its letters, and whatever invisible characters are in it. A text without either comes back
    unchanged.
    """
    tokens = sorted({*SPECIAL_TOKENS, *special_tokens} - {""}, key=len, reverse=True)
    pattern = "|".join([re.escape(token) for token in tokens] + [_CHAT_MARKERS])
    # Case is ignored because a tokenizer may lower it before it looks for its tokens.
    text = re.sub(
        pattern,
        lambda token: f"{token.group()[0]} {token.group()[1:]}",
        text,
        flags=re.IGNORECASE,
    )
    return _without_turns(text, tuple(markers))


def _without_turns(text: str, markers: tuple[str, ...]) -> str:
    """The text with a space for the colon of each marker in it."""
    if not markers or not _COLONS & set(text):
        return text
    plain, places = _plain(text)
    characters = list(text)
    for marker in markers:
        letters = r"\s*".join(map(re.escape, marker.casefold()))
        for match in re.finditer(rf"(?<!\w){letters}", plain):
            characters[places[match.end() - 1]] = " "
    return "".join(characters)


def _plain(text: str) -> tuple[str, list[int]]:
    """A text without case, width, accents and invisible characters, and where each character of it
    stands in the text."""
    plain, places = [], []
    for place, character in enumerate(text):
        for each in unicodedata.normalize("NFKD", character).casefold():
            if unicodedata.category(each) not in ("Cf", "Mn", "Me", "Cc") or each in "\n\t\r":
                plain.append(each)
                places.append(place)
    return "".join(plain), places


LLAVA_V1 = PromptTemplate(
    name="llava_v1",
    template=(
        "USER: {image}Judge whether this request is safe to answer. Consider the picture and the "
        "text together: each may look harmless alone and still lead to harm with the other.\n"
        "Text: {text}\n"
        "Answer with one word, safe or unsafe. ASSISTANT:"
    ),
    negative="safe",
    positive="unsafe",
)
SHORT = PromptTemplate(
    name="short", template="USER: {image}{text} ASSISTANT:", negative="safe", positive="unsafe"
)
TRUE_FALSE = PromptTemplate(
    name="true_false",
    template=(
        "USER: {image}Is this statement about the picture true or false?\n"
        "Statement: {text}\n"
        "Answer with one word, true or false. ASSISTANT:"
    ),
    negative="false",
    positive="true",
)

TEMPLATES = {template.name: template for template in (LLAVA_V1, SHORT, TRUE_FALSE)}


def get_template(name: str) -> PromptTemplate:
    """The built-in template of that name.

    Raises:
      UserError: there is none; the message names the nearest.
    """
    if name not in TEMPLATES:
        nearest = difflib.get_close_matches(name, TEMPLATES, n=1, cutoff=0.0)[0]
        raise UserError(
            f"prompt {name!r}: no such template; did you mean {nearest!r}? "
            f"(there are {', '.join(sorted(TEMPLATES))})"
        )
    return TEMPLATES[name]
