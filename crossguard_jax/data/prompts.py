"""How a picture and a text are put to a guard, and the two words it may answer with."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from crossguard_jax.core.errors import UserError

# Never taken from a user's text, whatever the tokenizer: the usual names of special tokens.
SPECIAL_TOKENS = ("<image>", "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<eos>", "<bos>")
_CHAT_MARKERS = r"<\|[^<>\n]{0,40}\|>|\[/?INST\]|<</?SYS>>"


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with room for a picture and a text, and the label words that answer it.

    ``{image}`` becomes the image token and a line break, or nothing for a row without a picture;
    ``{text}`` becomes the user's text. The prompt ends where the label word is to begin.
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

    def render(
        self,
        text: str,
        has_image: bool,
        image_token: str = "<image>",
        special_tokens: Iterable[str] = (),
    ) -> str:
        """The prompt for one row, with exactly one image token, or none without a picture.

        Args:
          text: the user's text; ``neutralize`` keeps it from forging special tokens.
          has_image: whether the row has a picture.
          image_token: the processor's image token.
          special_tokens: the tokenizer's own special tokens, beyond ``SPECIAL_TOKENS``.
        """
        parts = {
            "{image}": f"{image_token}\n" if has_image else "",
            "{text}": neutralize(text, (image_token, *special_tokens)),
        }
        # One pass over the template, so that a text that says "{image}" stays a text.
        return re.sub(r"\{image\}|\{text\}", lambda place: parts[place.group()], self.template)

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


def neutralize(text: str, special_tokens: Iterable[str] = ()) -> str:
    """Breaks up what a tokenizer would read as a special token, by a space after its first letter.

    ``"see <image>"`` becomes ``"see < image>"``: readable as before, but ordinary text. A text
    without special tokens comes back unchanged.
    """
    tokens = sorted({*SPECIAL_TOKENS, *special_tokens} - {""}, key=len, reverse=True)
    pattern = "|".join([re.escape(token) for token in tokens] + [_CHAT_MARKERS])
    # Case is ignored because a tokenizer may lower it before it looks for its tokens.
    return re.sub(
        pattern,
        lambda token: f"{token.group()[0]} {token.group()[1:]}",
        text,
        flags=re.IGNORECASE,
    )


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
