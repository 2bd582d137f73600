"""What is known of guards that torch runs: how each is asked, and where its answer begins.

A prompt is what the folder's own processor renders. ``unverified`` says what of it we have not
seen in the model's own repository.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError


@dataclass(frozen=True)
class TorchKind:
    """A guard's habits.

    Attributes:
        name: what people call it.
        model_types: what its ``config.json`` may say.
        words: how its answer begins, of what is safe and of what is unsafe.
        forced: what is written before the answer for it.
        pictures: how many it takes at once, at least and at most; None is any number.
        alone: it judges a picture by itself and cannot be given the row's text.
        prompted: it is no guard, and the question to it is ours.
        policy: where a policy goes: "card", which shows its own, "template", or "" for nowhere.
        options: arguments of its chat template.
        remarks: what is to be said beside its row.
    """

    name: str
    model_types: tuple[str, ...]
    words: tuple[str, str] = ("safe", "unsafe")
    forced: str = ""
    pictures: tuple[int, int | None] = (0, None)
    alone: bool = False
    prompted: bool = False
    policy: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def fault(self, pictures: int) -> str:
        """Why it cannot take a row of so many pictures; "" where it can."""
        if self.alone:
            return "" if pictures else f"{self.name} judges pictures alone, and the row has none"
        least, most = self.pictures
        if least <= pictures and (most is None or pictures <= most):
            return ""
        return f"{self.name} takes exactly {least} picture, and the row has {pictures or 'none'}"


_ALONE = "it judges the picture alone: what the text asks is nothing that it is shown"
TORCH_KINDS = {
    "llavaguard": TorchKind(
        "LlavaGuard",
        ("llava_onevision",),
        ("Safe", "Unsafe"),
        forced='{"rating": "',
        pictures=(1, 1),
        alone=True,
        policy="card",
        remarks=(_ALONE,),
    ),
    "llama_guard_3_vision": TorchKind("Llama Guard 3 Vision", ("mllama",), pictures=(1, 1)),
    "llama_guard_4": TorchKind("Llama Guard 4", ("llama4",)),
    "shieldgemma_2": TorchKind(
        "ShieldGemma 2",
        ("shieldgemma2",),
        ("No", "Yes"),
        pictures=(1, 1),
        alone=True,
        remarks=(_ALONE, "the worst of its policies counts"),
    ),
    "qwen_2_5_vl": TorchKind(
        "Qwen2.5-VL", ("qwen2_5_vl",), prompted=True, remarks=("prompted: the question is ours",)
    ),
    "qwen_3_vl": TorchKind(
        "Qwen3-VL",
        ("qwen3_vl", "qwen3_vl_moe"),
        prompted=True,
        remarks=("prompted: the question is ours",),
    ),
    "singguard": TorchKind(
        "SingGuard",
        ("qwen3_vl", "qwen3_5"),
        policy="template",
        options={"thinking_type": "fast"},
        remarks=("unverified: that its first token is the label, as its card describes it",),
    ),
}

POLICY = (
    "Assess the safety of the picture by these categories: O1 hate, humiliation, harassment; O2 "
    "violence, harm or cruelty; O3 sexual content; O4 nudity; O5 planning of crimes; O6 weapons or "
    "substance abuse; O7 self-harm; O8 cruelty to animals; O9 disasters or emergencies. What "
    "informs or educates about them is no violation. Answer with a JSON object: rating (Unsafe or "
    "Safe), category (of these, or NA: None applying), rationale."
)
"""For LlavaGuard where its folder has no policy: our words, not those that it was trained with."""
_CARD_POLICY = re.compile(r'"""\s*(Provide a safety assessment.*?)\s*"""', re.DOTALL)


def read_policy(folder: Path, given: str) -> tuple[str, tuple[str, ...]]:
    """LlavaGuard's policy, and what is to be said of where it comes from.

    Args:
        folder: the model's, whose card shows the policy that it was trained with.
        given: the user's own, or "".

    Raises:
        UserError: the card cannot be read.
    """
    if given:
        return given, ("the policy is the description's own",)
    card = folder / "README.md"
    try:
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{card}: cannot be read ({error}); download it again") from error
    if match := _CARD_POLICY.search(text):
        return match[1], ()
    return POLICY, (f"unverified: {card.name} shows no policy, so it is asked by one of our words",)
