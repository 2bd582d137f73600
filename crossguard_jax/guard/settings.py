"""What a guard needs beside its weights."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import LLAVA_V1, PromptTemplate
from crossguard_jax.hf.folder import check_number, read_object
from crossguard_jax.hf.pictures import PICTURES

SETTINGS = "guard_config.json"


@dataclass(frozen=True)
class Settings:
    """What a guard needs beside its weights; kept in ``guard_config.json`` of a model folder.

    Attributes:
        prompt: the template that puts a request to the model, with its two label words.
        threshold: the least ``p_unsafe`` that is unsafe.
        max_length: tokens of a row at most, its pictures' among them; 0 is the model's context.
        window: tokens of a row, its pictures' not counted, that the guard was trained for. A longer
            text is read in overlapping windows of that length; 0 is all that ``max_length`` leaves.
        max_windows: a text that takes more is refused.
        picture: what becomes of one that is no square, a name in `hf.pictures.PICTURES`.
    """

    prompt: PromptTemplate = LLAVA_V1
    threshold: float = 0.5
    max_length: int = 0
    window: int = 0
    max_windows: int = 512
    picture: str = ""

    def __post_init__(self):
        _check(vars(self))

    @classmethod
    def read(cls, folder: Path) -> "Settings":
        """A folder's settings; the defaults for one that has none (any LLaVA from the Hub).

        Raises:
            UserError: the file is damaged, or a field of it is missing, unknown or no such value.
        """
        path = folder / SETTINGS
        if not path.exists():
            return cls()
        settings = read_object(path)
        try:
            if unknown := settings.keys() - {field.name for field in fields(cls)}:
                raise UserError(f"no setting of a guard: {', '.join(sorted(unknown))}; mend it")
            _check(settings)
            prompt = PromptTemplate.from_fields(settings.get("prompt"))
            threshold = float(settings.get("threshold", cls.threshold))
            return cls(**settings | {"prompt": prompt, "threshold": threshold})
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def write(self, folder: Path) -> None:
        """Writes the file into a folder."""
        (folder / SETTINGS).write_text(json.dumps(asdict(self), indent=2) + "\n")


def _check(settings: Mapping[str, Any]) -> None:
    """Refuses a value, among those there are, that is none."""
    if "threshold" in settings:
        check_number("threshold", settings["threshold"], 0, 1)
    for name, least in (("max_length", 0), ("window", 0), ("max_windows", 1)):
        if name in settings:
            check_number(name, settings[name], least, whole=True)
    if (picture := settings.get("picture", "")) not in PICTURES:
        choices = ", ".join(map(repr, PICTURES))
        raise UserError(f"picture {picture!r} is none of {choices}; mend it")
