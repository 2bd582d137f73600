"""Guards that torch and transformers run: ``pip install 'crossguard-jax[torch]'``.

Each row is a forward pass of its own over the prompt that the folder's processor renders, and
``p_unsafe`` is a softmax over the first tokens of the two words that its answer may begin with. A
row's score depends on no other row, nor on how many are scored at once.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.prompts import neutralize
from crossguard_jax.guard.encoding import Pictures, pictures_of
from crossguard_jax.guard.guard import same_length
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.hf.folder import read_object
from crossguard_jax.hf.load import encoding_hash, folder_hash, resolve_folder
from crossguard_jax.io import images as pictures_io
from crossguard_jax.io.progress import Progress
from crossguard_jax.systems.endpoint import PROMPT, read_description
from crossguard_jax.systems.system import BaseSystem
from crossguard_jax.systems.torch_kinds import TORCH_KINDS, TorchKind, read_policy

MIN_PIXELS, MAX_PIXELS = 256 * 28 * 28, 1280 * 28 * 28
"""Between which Qwen's processors scale a picture: as its cards advise, in place of a folder's own
most, which is 16 times that."""
_HEADERS = ("<|end_header_id|>", "<|header_end|>")
"""Llama's guards are not asked for the line breaks that their answers begin with."""


@dataclass(frozen=True, kw_only=True)
class TorchFields:
    """What a ``.json`` says of a guard that torch runs.

    Attributes:
        model: the Hub folder.
        prompt: of one that is prompted, with ``{text}`` in it.
        policy: LlavaGuard's or SingGuard's, in place of its own.
        min_pixels, max_pixels: of a picture, for those that are prompted.
        trust_remote_code: whether Python files of the folder are run.
    """

    model: str
    prompt: str = PROMPT
    policy: str = ""
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.prompt.count("{text}") != 1:
            raise UserError("prompt: write {text} exactly once in it")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise UserError(
                f"min_pixels {self.min_pixels}, max_pixels {self.max_pixels}: mend them"
            )


class TorchGuard(BaseSystem):
    """See the module.

    Args:
        kind: its habits.
        model: a transformers model that takes pictures and texts.
        processor: its own.
        fields: what was said of it.
        threshold: None is 0.5.

    Raises:
        UserError: the processor has no chat template, or the two words begin with one token.
    """

    def __init__(
        self,
        kind: TorchKind,
        model: Any,
        processor: Any,
        fields: TorchFields,
        threshold: float | None = None,
    ):
        folder = resolve_folder(fields.model)
        super().__init__(Settings(threshold=0.5 if threshold is None else threshold), folder)
        self.kind, self.model, self.processor, self.fields = kind, model, processor, fields
        if fields.policy and not kind.policy:
            raise UserError(f"policy: {kind.name} takes none; leave it out")
        self._policy, self.remarks = fields.policy, kind.remarks
        if kind.policy == "card":
            self._policy, more = read_policy(folder, fields.policy)
            self.remarks += more
        probe = self.render("a text", max(kind.pictures[0], 1))
        self.label_ids = tuple(self._first_id(probe, word) for word in kind.words)
        if self.label_ids[0] == self.label_ids[1]:
            raise UserError(f"{folder}: {' and '.join(kind.words)} begin with one token")
        self._probe = hashlib.sha256(probe.encode()).hexdigest()
        _mend_llama4()

    def identity(self) -> dict[str, Any]:
        """See `BaseSystem`."""
        import transformers

        return {
            "kind": self.kind.name,
            "weights": folder_hash(self.folder),
            "encoding": encoding_hash(self.folder),
            "prompt": self._probe,
            "pixels": self._size(),
            "dtype": str(self.model.dtype),
            "transformers": transformers.__version__,
        }

    def score_each(
        self,
        images: Sequence[Pictures],
        texts: Sequence[object],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
    ) -> list[Verdict | UserError]:
        """See `BaseSystem`; a row at a time, whatever ``batch_size`` says."""
        same_length(images, texts)
        outcomes: list[Verdict | UserError] = []
        with Progress(f"asking {self.kind.name}", len(texts)) as progress:
            for shown, text in zip(images, texts, strict=True):
                try:
                    outcomes.append(self.verdict(self._score(shown, text), threshold))
                except UserError as error:
                    outcomes.append(error)
                progress.update()
        return outcomes

    def _score(self, shown: Pictures, text: object) -> float:
        pictures = [pictures_io.rgb(picture) for picture in pictures_of(shown)]
        if not isinstance(text, str):
            raise UserError(f"text is a {type(text).__name__}; give a str")
        if not text.strip() and not pictures:
            raise UserError("text is empty, and there is no picture; give one of them")
        if fault := self.kind.fault(len(pictures)):
            raise UserError(fault)
        p = max(self.p_unsafe([x], "") for x in pictures) if self.kind.alone else None
        p = self.p_unsafe(pictures, text) if p is None else p
        if not 0 <= p <= 1:  # NaN compares as safe
            raise UserError("the model's score is not a number")
        return p

    def render(self, text: str, pictures: int) -> str:
        """The prompt, up to where the answer's word begins.

        Args:
            text: a user's, which forges no token of the model's.
            pictures: how many stand before it.
        """
        fences = ("<message>", "</message>", *self.processor.tokenizer.all_special_tokens)
        text = self._policy if self.kind.policy == "card" else neutralize(text, fences)
        if self.kind.prompted:
            text = self.fields.prompt.replace("{text}", text)
        options = dict(self.kind.options)
        if self._policy and self.kind.policy == "template":
            options["policy"] = self._policy
        prompt = self._rendered(text, pictures, options)
        return prompt + "\n\n" * prompt.endswith(_HEADERS) + self.kind.forced

    def _rendered(self, text: str, pictures: int, options: Mapping[str, Any]) -> str:
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": text}]
        try:
            return self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
        except Exception as error:
            why = short(" ".join(str(error).split()))
            raise UserError(f"{self.folder}: its chat template fails ({why})") from error

    def encode(self, pictures: Sequence[Image.Image], text: str) -> Any:
        """What the model takes of a row."""
        prompt = self.render(text, len(pictures))
        bos = self.processor.tokenizer.bos_token
        return self.processor(
            text=[prompt],
            images=[*pictures] or None,
            # Many templates write the token themselves; twice it is another prompt.
            add_special_tokens=not (bos and prompt.startswith(bos)),
            return_tensors="pt",
            **({"images_kwargs": {"size": self._size()}} if pictures and self._size() else {}),
        )

    def _inputs(self, pictures: Sequence[Image.Image], text: str) -> Any:
        """`encode`, whose processor may refuse a picture, by its shape, say."""
        try:
            return self.encode(pictures, text)
        except ValueError as error:
            why = short(" ".join(str(error).split()))
            raise UserError(f"its processor refuses the row ({why})") from error

    def p_unsafe(self, pictures: Sequence[Image.Image], text: str) -> float:
        """p(the unsafe word) against the safe one."""
        import torch

        inputs = self._inputs(pictures, text).to(self.model.device)
        with torch.inference_mode():
            logits = self.model(**_cast(inputs, self.model.dtype), logits_to_keep=1).logits[0, -1]
        return float(logits[list(self.label_ids)].float().softmax(-1)[1])

    def _size(self) -> dict[str, int]:
        """Pixels of a picture, at least and at most, as Qwen's processors call it."""
        if not self.kind.prompted:
            return {}
        return {"shortest_edge": self.fields.min_pixels, "longest_edge": self.fields.max_pixels}

    def _first_id(self, prompt: str, word: str) -> int:
        """The token that a word begins with behind a prompt."""
        tokenizer = self.processor.tokenizer
        before, whole = (
            tokenizer(each, add_special_tokens=False)["input_ids"]
            for each in (prompt, prompt + word)
        )
        if whole[: len(before)] != before:
            raise UserError(f"{self.folder}: the prompt's last token and {word!r} are one")
        return int(whole[len(before)])


class ShieldGemma(TorchGuard):
    """ShieldGemma 2, whose model reads its two words itself: Yes is a violation.

    What is rendered is its processor's business: a prompt a policy.
    """

    def render(self, text: str, pictures: int) -> str:
        """The prompts of all policies."""
        policies = [text for _, text in sorted(self.processor.policy_definitions.items())]
        return "".join(self._rendered(policy, pictures, {}) for policy in policies)

    def encode(self, pictures: Sequence[Image.Image], text: str) -> Any:
        """A row a policy."""
        return self.processor(images=[*pictures], return_tensors="pt")

    def p_unsafe(self, pictures: Sequence[Image.Image], text: str) -> float:
        """p(Yes) of the worst policy."""
        import torch

        inputs = self._inputs(pictures, text).to(self.model.device)
        with torch.inference_mode():
            outputs = self.model(**_cast(inputs, self.model.dtype), logits_to_keep=1)
        # Column 0 is Yes, whatever the class's docstring says.
        return float(outputs.probabilities[:, 0].max())


def _mend_llama4() -> None:
    """transformers 5.24's Llama 4 fails on its last line: it asks its text model's output for a
    field that the class lacks."""
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast

    if not hasattr(MoeCausalLMOutputWithPast, "image_outputs"):
        MoeCausalLMOutputWithPast.image_outputs = None


def _cast(inputs: Any, dtype: Any) -> dict[str, Any]:
    """The inputs with pixels in the weights' type."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def load_torch_guard(
    kind: str, what: str, dtype: str | None = "float32", threshold: float | None = None
) -> TorchGuard:
    """A Hub folder, or a ``.json`` that says `TorchFields`, on the GPU where there is one.

    Args:
        kind: a name in `torch_kinds.TORCH_KINDS`.
        what: the folder or file.
        dtype: of the weights; None is what the files have.
        threshold: None is 0.5.

    Raises:
        UserError: there is no torch, or whatever is wrong with the folder.
    """
    fields = read_description(what, TorchFields, ()) if what.endswith(".json") else None
    fields = fields or TorchFields(model=what)
    habits, folder = TORCH_KINDS[kind], resolve_folder(fields.model)
    model_type = read_object(folder / "config.json").get("model_type")
    if model_type not in habits.model_types:
        expected = " or ".join(habits.model_types)
        raise UserError(
            f"{folder}: holds a {model_type}, and {kind} is a {expected}; give that model's folder"
        )
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"{kind}: is run by torch ({error}): pip install 'crossguard-jax[torch]'"
        ) from error
    make = ShieldGemma if kind == "shieldgemma_2" else TorchGuard
    of_model: Any = transformers.AutoModelForImageTextToText
    if make is ShieldGemma:
        of_model = transformers.ShieldGemma2ForImageClassification
    trusted = {"trust_remote_code": fields.trust_remote_code}
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder, **trusted)
        model: Any = of_model.from_pretrained(
            folder, dtype=dtype or "auto", use_safetensors=True, **trusted
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"{folder}: transformers cannot load it ({_line(error)})") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return make(habits, model.to(device).eval(), processor, fields, threshold)


def _line(error: Exception) -> str:
    return short(" ".join(str(error).split()), 200)
