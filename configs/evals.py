"""What ``crossguard evaluate`` compares: the papers' benchmarks as downloaded, and systems.

A benchmark is looked for in ``folder/NAME``, or at its own ``path``; one that you do not have is
switched off: ``--config.benchmarks.figstep.on=false``. The systems that need weights or a key are
off until they have a path: ``--config.systems.llavaguard.path=llavaguard:FOLDER`` and ``.on=true``.

Of the paper (arXiv 2510.17687) are the five benchmarks and the names of the systems; 40 rows of
each of MM-SafetyBench's 13 scenarios are the 520 that its figures are of. The rest is ours.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, config_dict


def benchmark(
    reader: str, folder: str, title: str, split: str = "", limit: int = 0, per_category: int = 0
) -> dict[str, Any]:
    """A published set, by its reader in ``crossguard score --format``."""
    return {
        "on": True,
        "reader": reader,
        # Below the configuration's own folder; `path` is one anywhere.
        "folder": folder,
        "path": "",
        "split": split,
        "title": title,
        # Rows at most, and of each category at most, drawn by the bootstrap's seed; 0 is all.
        "limit": limit,
        "per_category": per_category,
        # Columns are in this order, then by name.
        "place": 0,
    }


def system(title: str, path: str = "", on: bool = True) -> dict[str, Any]:
    """A row of the table: a folder, or what else a system is named by."""
    return {
        "on": on,
        "path": path,
        "adapter": "",
        "title": title,
        # A prompt's name; "" is what the folder says.
        "prompt": "",
        # The least p_unsafe that is unsafe; None is by the rule below.
        "threshold": config_dict.placeholder(float),
        # Rows are in this order, then by name.
        "place": 0,
    }


ATTACKS = {
    "jailbreakv": benchmark("jailbreakv", "JailBreakV_28K", "JailBreakV", split="mini"),
    "mm_safetybench": benchmark(
        "mm_safetybench", "MM-SafetyBench", "MM-SafetyBench", split="SD_TYPO", per_category=40
    ),
    "siuo": benchmark("siuo", "SIUO", "SIUO"),
    "figstep": benchmark("figstep", "FigStep", "FigStep", split="all"),
    "vlguard": benchmark("vlguard", "VLGuard", "VLGuard", split="test"),
}
BENIGN = {"vqav2": benchmark("vqav2", "VQAv2", "VQAv2", split="val", limit=500)}
OVER_REFUSAL = {
    "xstest": benchmark("xstest", "XSTest", "XSTest"),
    "mossbench": benchmark("mossbench", "MOSSBench", "MOSSBench", split="all"),
    "mm_vet": benchmark("mm_vet", "MM-Vet", "MM-Vet", split="v1"),
}
JOINT = {
    "siuo": ATTACKS["siuo"],
    "mssbench": benchmark("mssbench", "MSSBench", "MSSBench", split="chat"),
    "holisafe": benchmark("holisafe", "HoliSafe-Bench", "HoliSafe-Bench", split="SSU"),
    "vlsbench": benchmark("vlsbench", "VLSBench", "VLSBench"),
}


def in_order(entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries with their places, which a ConfigDict forgets."""
    return {name: each | {"place": i} for i, (name, each) in enumerate(entries.items())}


def base() -> ConfigDict:
    """What all variants share: systems, thresholds, the bootstrap."""
    config = ConfigDict()
    config.folder = "data/benchmarks"
    config.benchmarks = {}
    systems = {
        "crossguard": system("CrossGuard", "runs/merged"),
        "crossguard_cmai": system("CrossGuard + CMAI", "runs/immunize/model", on=False),
        "llava_1_5_7b": system("LLaVA-1.5-7B, by refusal", on=False),
        "qwen2_5_vl_7b": system("Qwen2.5-VL-7B, by refusal", on=False),
        "gpt_4o": system("GPT-4o, by refusal", on=False),
        "llavaguard": system("LlavaGuard", on=False),
        "llama_guard_3_vision": system("Llama-Guard-3-Vision", on=False),
        "hidden_detect": system("HiddenDetect", "runs/hidden_detect", on=False),
        "jaildam": system("JailDAM", "runs/jaildam", on=False),
        "rcs": system("RCS", "runs/rcs", on=False),
        "text_only": system("CrossGuard, text alone"),
        "picture_only": system("CrossGuard, picture alone"),
        "always_unsafe": system("Always unsafe", "always_unsafe"),
        "always_safe": system("Always safe", "always_safe"),
    }
    config.systems = in_order(systems)
    # They are of the system above, whatever its path, where they are given none of their own.
    for control in ("text_only", "picture_only"):
        for field, before in (("path", f"{control}:"), ("adapter", "")):
            config.systems[control][field] = before + config.systems.crossguard.get_ref(field)
    # The system that the report is about and that all others are compared with.
    config.named = "crossguard"
    # "own": each system's own; "named": that one's for all; or a number.
    config.threshold = "own"
    # Whole pictures are drawn with replacement; 0 samples draw none.
    config.bootstrap = {"samples": 1_000, "seed": 0}
    # Rows that each system is timed on, alone and in batches; each is scored four times. 0: none.
    config.speed_rows = 0
    # Show what papers print, marked, beside ours.
    config.published = True
    # "out" of the denominator, or "in" it by what else such a row has.
    config.missing_pictures = "out"
    # Rows and verdicts as other tools read them: "inspect", "guardbench".
    config.exports = ()
    return config


def of(benchmarks: dict[str, dict[str, Any]]) -> ConfigDict:
    """The shared configuration over these benchmarks."""
    config = base()
    config.benchmarks = in_order(benchmarks)
    return config


def paper() -> ConfigDict:
    """The paper's main table: its five benchmarks, and benign questions for the false alarms."""
    return of(ATTACKS | BENIGN)


def utility() -> ConfigDict:
    """Over-refusal and use: XSTest, MOSSBench, MM-Vet, benign questions."""
    config = of(OVER_REFUSAL | BENIGN)
    # XSTest's rows have no picture.
    config.systems.picture_only.on = False
    return config


def joint() -> ConfigDict:
    """Danger by the combination alone: SIUO, MSSBench's twins, HoliSafe's SSU, VLSBench."""
    return of(JOINT | BENIGN)


def everything() -> ConfigDict:
    """All benchmarks of the other variants."""
    return of(ATTACKS | OVER_REFUSAL | JOINT | BENIGN)


VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    "paper": paper,
    "utility": utility,
    "joint": joint,
    "all": everything,
}


def get_config(variant: str) -> ConfigDict:
    """The configuration of that name."""
    return VARIANTS[variant]()
