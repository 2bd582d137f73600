"""Systems that are loaded when a verdict has to be made, and no sooner.

Beside the verdicts of a store lies, in ``systems/``, what is to be known of each system to read
them: what it is, its label words, its threshold. That holds for as long as every file that it was
made from, and the code that reads them, is as it was; a model of 7B is then neither read nor hashed
to print a table of what it said before.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import PromptTemplate
from crossguard_jax.guard.encoding import Pictures
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.io import files
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.runtime import processes
from crossguard_jax.systems.load import identity
from crossguard_jax.systems.system import System


@dataclass(frozen=True)
class SystemFacts:
    """What is to be known of a system beside its verdicts, as JSON values.

    Attributes:
        identity: see `systems.load.identity`.
        prompt: the fields of its `PromptTemplate`, with the label words.
        threshold: its own.
        folder: where it comes from.
        remarks: what stands beside its row, such as how far its judge agrees with people.
    """

    identity: dict[str, Any]
    prompt: dict[str, str]
    threshold: float
    folder: str
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, system: System) -> "SystemFacts":
        """Of a system that is loaded."""
        return cls(
            identity(system),
            asdict(system.settings.prompt),
            system.settings.threshold,
            str(system.folder),
            tuple(getattr(system, "remarks", ())),
        )


class Deferred:
    """A `systems.load.System` by what is known of it, loaded at its first verdict.

    Args:
        load: loads it.
        facts: what is known.

    Attributes:
        loaded: the system itself; None as long as nothing had to be made.
    """

    mesh: Mesh | None = None

    def __init__(self, load: Callable[[], System], facts: SystemFacts):
        self.facts, self._load = facts, load
        self.loaded: System | None = None
        prompt = PromptTemplate.from_fields(facts.prompt)
        self.settings = Settings(prompt=prompt, threshold=facts.threshold)
        self.folder = Path(facts.folder)

    def score(
        self, images: Sequence[Pictures], texts: Sequence[str], **options: Any
    ) -> list[Verdict]:
        """As the system's own."""
        return self.system().score(images, texts, **options)

    def score_each(
        self, images: Sequence[Pictures], texts: Sequence[object], **options: Any
    ) -> list[Verdict | UserError]:
        """As the system's own."""
        return self.system().score_each(images, texts, **options)

    @property
    def remote(self) -> bool:
        """As the system's own."""
        return getattr(self.system(), "remote", False)

    def system(self) -> System:
        """The system, loaded if need be."""
        if self.loaded is None:
            self.loaded = self._load()
            self.mesh = self.loaded.mesh
        return self.loaded


def deferred(
    folder: str | None, spec: dict[str, Any], load: Callable[[], System]
) -> tuple[System, SystemFacts]:
    """A system and its facts: as they were kept, if all that they rest on is unchanged.

    A system that was made from no file (an endpoint, a control) is always loaded, and so is any
    where several processes compute, which have to agree on its mesh.

    Args:
        folder: the store; None keeps nothing.
        spec: what is loaded and how, as JSON values.
        load: loads it.
    """
    path = None
    if folder is not None:
        name = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:24]
        path = Path(folder) / "systems" / f"{name}.json"
        if processes.count() == 1 and (facts := _kept(path)):
            return Deferred(load, facts), facts
    with files.noting() as stamps:
        system = load()
        facts = SystemFacts.of(system)
    # A system may be named by its kind and a file or folder: "text_only:runs/guard".
    roots = {*str(spec["path"]).split(":"), str(spec["path"]), spec["adapter"] or "", facts.folder}
    stamps |= {p: s for root in roots - {"", "."} for p, s in files.stamps_under(Path(root))}
    if path is not None and stamps:
        content = {"spec": spec, "facts": asdict(facts), "files": stamps, "code": files.code()}
        text = json.dumps(content, indent=1, sort_keys=True)
        processes.by_first(lambda: write_atomic(path, text + "\n"))
    return system, facts


def _kept(path: Path) -> SystemFacts | None:
    try:
        content = json.loads(path.read_text())
        fields = content["facts"]
        facts = SystemFacts(**fields | {"remarks": tuple(fields["remarks"])})
        stamps = content["files"]
        # A file that has come changes a folder, too.
        come = any(p not in stamps for p, _ in files.stamps_under(Path(facts.folder)))
        same = not come and files.unchanged(stamps) and content["code"] == files.code()
    except (OSError, ValueError, TypeError, KeyError):
        return None  # there is none, or it is damaged: it is made anew
    return facts if same else None
