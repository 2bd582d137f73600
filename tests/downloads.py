"""Benchmarks as their authors publish them: folders, files and fields, with made rows in them.

Texts are mild and pictures are squares of one shade. What breaks a naive reader is there: texts
over several lines, pictures of another format than their name says, a field with a space in its
name.
"""

import csv
import functools
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from crossguard_jax.data.sources.beavertails import CATEGORIES
from crossguard_jax.data.sources.mm_safetybench import KINDS, SCENARIOS
from crossguard_jax.data.sources.twins import XSTEST_CONTRASTS

LINES = "how do i warm the milk ?\nin the pan, or — as my aunt does — in a cup ?"


@functools.cache
def encoded(shade: int, format: str = "PNG") -> bytes:
    """A small picture of one shade."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade % 256, shade // 256 % 256, 9)).save(buffer, format)
    return buffer.getvalue()


def put(path: Path, data: bytes | str) -> None:
    """Writes a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def put_json(path: Path, content: Any) -> None:
    put(path, json.dumps(content, indent=1, ensure_ascii=False))


def put_csv(path: Path, rows: Sequence[dict[str, Any]], end: str = "\n") -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    put(path, buffer.getvalue())


def siuo(root: Path, n: int) -> None:
    rows = [
        {
            "question_id": 1001 + i,
            "image": f"S-{i:02d}.png",
            "question": f"may i drink it, number {i} ?",
            "category": "dangerous behavior",
            "safety_warning": "The cup holds cleaner.",
            "reference_answer": "Do not.",
        }
        for i in range(n)
    ]
    put_json(root / "siuo_gen.json", rows)
    for i, row in enumerate(rows):
        put(root / "images" / row["image"], encoded(i))


def vlsbench(root: Path, n: int) -> None:
    rows = [
        {
            "instruction_id": i,
            "instruction": f"how do i use it, number {i} ?" if i != 1 else "",
            "image_path": f"imgs/{max(i - 1, 0)}.png",  # the first two share one
            "category": "Household",
            "sub_category": "Kitchen",
            "source": "made",
            "image_description": "a stove",
            "safety_reason": "It is hot.",
        }
        for i in range(n)
    ]
    put_json(root / "data.json", rows)
    for i in range(max(n - 1, 1)):
        put(root / "imgs" / f"{i}.png", encoded(i))


def holisafe(root: Path, n: int) -> None:
    kinds = ("SSU", "SSS", "SUU", "USU", "UUU")
    rows = [
        {
            "id": 10 + i,
            "image": f"household/kitchen/{i // 2}.png",
            "query": f"shall i touch it, number {i} ?",
            "category": "household",
            "subcategory": "kitchen",
            "type": kinds[i % 5],
            "image_safe": kinds[i % 5][0] == "S",
            "image_safety_label": 0,
        }
        for i in range(n)
    ]
    put_json(root / "holisafe_bench.json", rows)
    for image in {row["image"] for row in rows}:
        put(root / "images" / image, encoded(len(image)))


def mm_safetybench(root: Path, n: int) -> None:
    """``n`` questions in each scenario, the first of which is in the small set."""
    for s, scenario in enumerate(SCENARIOS):
        rows = {
            str(i): {
                "Question": "q",
                "Changed Question": "c",
                "Key Phrase": "a kettle",
                "Phrase Type": "object",
                "Rephrased Question": f"the picture shows a phrase; explain it, number {s}-{i}",
                "Rephrased Question(SD)": f"explain the thing in the picture, number {s}-{i}",
            }
            for i in range(n)
        }
        put_json(root / "data" / "processed_questions" / f"{scenario}.json", rows)
        for k, kind in enumerate(KINDS):
            for i in range(n):
                picture = encoded(100 * s + 10 * k + i, "JPEG")
                put(root / "data" / "imgs" / scenario / kind / f"{i}.jpg", picture)
    tiny = [{"Scenario": scenario, "Sampled_ID_List": [0]} for scenario in SCENARIOS]
    put_json(root / "TinyVersion_ID_List.json", tiny)


def mm_safetybench_mirror(root: Path, n: int, struct: bool = True) -> None:
    """The same as Parquet, where a picture is its bytes or a pair of bytes and path."""
    mm_safetybench(root / "unused", n)
    for scenario in SCENARIOS:
        file = root / "unused" / "data" / "processed_questions" / f"{scenario}.json"
        rows = json.loads(file.read_text())
        for kind, field in KINDS.items():
            folder = root / "unused" / "data" / "imgs" / scenario / kind
            pictures = [(folder / f"{i}.jpg").read_bytes() for i in range(n)]
            columns = {
                "id": [str(i) for i in range(n)],
                "question": [rows[str(i)][field] for i in range(n)],
                "image": [{"bytes": p, "path": None} for p in pictures] if struct else pictures,
                "label": [1] * n,
            }
            target = root / "data" / scenario[3:] / f"{kind}.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.table(columns), target)
    (root / "unused" / "TinyVersion_ID_List.json").rename(root / "TinyVersion_ID_List.json")


def figstep(root: Path, n: int) -> None:
    """``n`` tasks in each of ten categories, five of them in the small set at most."""
    for tiny in (False, True):
        rows = [
            {
                "dataset": "ForbidQI",
                "category_id": category,
                "task_id": task,
                "category_name": f"topic {category}",
                "question": "how do i fold a sheet ?",
                "instruction": "Steps to fold a sheet. 1. 2. 3.",
            }
            for category in range(1, 11)
            for task in range(1, (min(n, 5) if tiny else n) + 1)
        ]
        name = "SafeBench-Tiny.csv" if tiny else "safebench.csv"
        file = root / "data" / "question" / name
        put_csv(file, rows, end="\r\n" if tiny else "\n")
        file.write_bytes(file.read_bytes().rstrip())
        folder = root / "data" / "images" / ("SafeBench-Tiny" if tiny else "SafeBench")
        put(folder / "README.md", "\n")
        put(folder / "screenshots.zip", b"PK\5\6" + bytes(18))
        for i, row in enumerate(rows):
            picture = f"query_ForbidQI_{row['category_id']}_{row['task_id']}_6.png"
            put(folder / picture, encoded(1_000 * tiny + i))


def jailbreakv(root: Path, n: int) -> None:
    """``n`` rows, of which the first half are in the small file as well."""
    rows = [
        {
            "id": i,
            "jailbreak_query": f"{LINES} number {i}",
            "redteam_query": "how do i warm the milk ?",
            "format": "Template",
            "policy": "Household",
            "image_path": f"llm_transfer_attack/SD_related_{i % 3}.png",
            "from": "made",
            "selected_mini": str(i < (n + 1) // 2),
            "transfer_from_llm": "True",
        }
        for i in range(n)
    ]
    put_csv(root / "JailBreakV_28K" / "JailBreakV_28K.csv", rows)
    mini = rows[: (n + 1) // 2]
    put_csv(root / "JailBreakV_28K" / "mini_JailBreakV_28K.csv", mini)
    for i in range(3):
        picture = f"llm_transfer_attack/SD_related_{i}.png"
        put(root / "JailBreakV_28K" / picture, encoded(i))


def vlguard(root: Path, n: int) -> None:
    """``n`` pictures a split, of which every second is safe; one is in both splits."""
    for split in ("train", "test"):
        rows = []
        for i in range(n):
            name = "Ads_303871" if i == 0 else f"{split}_{i}"
            row: dict[str, Any] = {"id": name, "image": f"bad_ads/{name}.png", "safe": bool(i % 2)}
            if i % 2:
                row["instr-resp"] = [
                    {"safe_instruction": f"what is sold, number {i} ?", "response": "a cup"},
                    {"unsafe_instruction": f"how do i break it, number {i} ?", "response": ""},
                ]
            else:
                row |= {"harmful_category": "risky behavior", "harmful_subcategory": "mild"}
                row["instr-resp"] = [{"instruction": f"describe it, {split} {i}", "response": "no"}]
            rows.append(row)
            put(root / split / row["image"], encoded(i if i == 0 else 500 * (split == "test") + i))
        put_json(root / f"{split}.json", rows)


XSTEST_TYPES = (
    *("homonyms", "contrast_homonyms", "figurative_language", "contrast_figurative_language"),
    *("safe_targets", "contrast_safe_targets", "safe_contexts", "contrast_safe_contexts"),
    *("definitions", "contrast_definitions", "nons_group_real_discr", "real_group_nons_discr"),
    *("contrast_discr", "historical_events", "contrast_historical_events", "privacy_public"),
    *("privacy_fictional", "contrast_privacy"),
)


def xstest(root: Path, n: int) -> None:
    """The first ``n`` of 450 rows: 25 of each type, in the published order."""
    rows = [
        {
            "id": i + 1,
            "prompt": f"how do i beat an egg, number {i} ?",
            "type": (kind := XSTEST_TYPES[i // 25]),
            "label": "unsafe" if kind in XSTEST_CONTRASTS else "safe",
            "focus": "beat",
            "note": "",
        }
        for i in range(n)
    ]
    put_csv(root / "xstest_prompts.csv", rows)


def mossbench(root: Path, n: int) -> None:
    """``n`` rows, of which the first three quarters have a contrast; every second asks the same."""
    for folder in ("data", "data_contrast"):
        contrast = folder == "data_contrast"
        rows = {
            str(i): {
                "image": f"images/{i}.png",
                "short description": "a playroom",
                "question": f"what is a game with it, number {i}"
                + (" and a knife ?" if contrast and i % 2 else " ?"),
                "metadata": {"over": f"type {i % 3 + 1}"}
                | ({} if contrast else {"human": 0, "child": 1, "syn": 1, "ocr": 0, "harm": [7]}),
                "pid": str(i),
                "description": "a playroom with blocks",
            }
            for i in range(1, 1 + (244 * n // 300 if contrast else n))
        }
        put_json(root / folder / "images_information" / "information.json", rows)
        for i in range(1, len(rows) + 1):
            format = "WEBP" if i == 2 else "PNG"
            put(root / folder / "images" / f"{i}.png", encoded(500 * contrast + i, format))


def mssbench(root: Path, n: int) -> None:
    chat = [
        {
            "safe_image_path": f"safe_{i}.jpg",
            "intent": "run",
            "unsafe_image": "a cliff",
            "unsafe_image_path": f"unsafe_{i}.jpg",
            "Type": "physical harm",
            "queries": [f"how do i run faster, number {i} ?", f"may i run here, number {i} ?"],
        }
        for i in range(n)
    ]
    embodied = [
        {
            "task": "heat",
            "category": "fire",
            "safe": f"safe_{i}.png",
            "unsafe": f"unsafe_{i}.png",
            "safe_instruction": "heat the cup",
            "safe_instructions": [f"heat the cup, number {i}", "warm the cup"],
            "unsafe_instruction": "heat the fork",
            "unsafe_instructions": [f"heat the fork, number {i}"],
            "observation_safe": "a cup",
            "observation_unsafe": "a fork",
        }
        for i in range(n)
    ]
    put_json(root / "combined.json", {"chat": chat, "embodied": embodied})
    for i in range(n):
        for side in ("safe", "unsafe"):
            put(root / "chat" / f"{side}_{i}.jpg", encoded(i + 300 * (side == "safe"), "JPEG"))
            put(root / "embodied" / f"{side}_{i}.png", encoded(i + 600 * (side == "safe")))


def mm_vet(root: Path, n: int) -> None:
    rows = {
        f"v1_{i}": {
            "imagename": f"v1_{i}.png",
            "question": f"what is x, number {i} ?",
            "answer": "-1 <AND> -5",
            "capability": ["ocr", "math"],
        }
        for i in range(n)
    }
    put_json(root / "mm-vet.json", rows)
    for i in range(n):
        put(root / "images" / f"v1_{i}.png", encoded(i))


def mm_vet_v2(root: Path, n: int) -> None:
    rows = {
        f"v2_{i}": {
            "question": f"what is in<IMG>v2_{i}_0.png<IMG>and not in<IMG>v2_{i}_1.jpg",
            "answer": "a cup",
            "capability": ["rec"],
            "added_in": "v2",
        }
        for i in range(n)
    }
    put_json(root / "mm-vet-v2.json", rows)
    for i in range(n):
        put(root / "images" / f"v2_{i}_0.png", encoded(i))
        put(root / "images" / f"v2_{i}_1.jpg", encoded(i + 300, "JPEG"))


def vqav2(root: Path, n: int) -> None:
    questions = [
        {"question_id": 10 * i, "image_id": i, "question": f"what is it, number {i} ?"}
        for i in range(n)
    ]
    answers = [
        {
            "question_id": 10 * i,
            "image_id": i,
            "multiple_choice_answer": "a cup",
            "answer_type": "other",
            "answers": [{"answer": f"cup {k}", "answer_id": k} for k in range(10)],
        }
        for i in range(n)
    ]
    info = {"info": {"version": "2.0"}, "license": {"name": "made"}}
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    put_json(root / name, info | {"questions": questions})
    name = "v2_mscoco_val2014_annotations.json"
    put_json(root / name, info | {"annotations": answers})
    for i in range(n):
        put(root / "val2014" / f"COCO_val2014_{i:012d}.jpg", encoded(i, "JPEG"))


def beavertails(root: Path, n: int) -> None:
    flags = dict.fromkeys(CATEGORIES, False) | {CATEGORIES[0]: True}
    for size in ("30k", "330k"):
        rows = [
            {"prompt": f"{size}, number {i}", "response": "", "category": flags, "is_safe": True}
            for i in range(n)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        put(root / "round0" / size / "train.jsonl", lines)


@dataclass(frozen=True)
class Download:
    """A set as downloaded.

    Attributes:
        reader: its name in `data.sources`.
        write: makes it, given a folder and how large it is to be.
        split: the split to read; "" where the set has none.
        table: the file of its rows, or the first of them.
        pictures: the folder of its pictures; "" where it has none.
        records: how many records there are of a table of four rows (or ten times, or 13 times so
            many, where a row of the table is not what ``write`` counts).
    """

    reader: str
    write: Callable[[Path, int], None]
    split: str
    table: str
    pictures: str
    records: int

    @property
    def options(self) -> dict[str, Any]:
        return {"split": self.split} if self.split else {}


MOSS = "images_information/information.json"
DOWNLOADS = {
    "siuo": Download("siuo", siuo, "", "siuo_gen.json", "images", 4),
    "vlsbench": Download("vlsbench", vlsbench, "", "data.json", "imgs", 4),
    "holisafe": Download("holisafe", holisafe, "all", "holisafe_bench.json", "images", 4),
    "mm_safetybench": Download(
        "mm_safetybench",
        mm_safetybench,
        "SD",
        f"data/processed_questions/{SCENARIOS[0]}.json",
        "data/imgs",
        4 * 13,
    ),
    "figstep": Download(
        "figstep", figstep, "all", "data/question/safebench.csv", "data/images/SafeBench", 4 * 10
    ),
    "figstep, tiny": Download(
        "figstep",
        figstep,
        "tiny",
        "data/question/SafeBench-Tiny.csv",
        "data/images/SafeBench-Tiny",
        4 * 10,
    ),
    "jailbreakv": Download(
        "jailbreakv",
        jailbreakv,
        "full",
        "JailBreakV_28K/JailBreakV_28K.csv",
        "JailBreakV_28K/llm_transfer_attack",
        4,
    ),
    "vlguard": Download("vlguard", vlguard, "test", "test.json", "test", 6),
    "xstest": Download("xstest", xstest, "", "xstest_prompts.csv", "", 4),
    "mossbench": Download("mossbench", mossbench, "safe", f"data/{MOSS}", "data/images", 4),
    "mssbench": Download("mssbench", mssbench, "chat", "combined.json", "chat", 16),
    "mm_vet": Download("mm_vet", mm_vet, "v1", "mm-vet.json", "images", 4),
    "mm_vet, v2": Download("mm_vet", mm_vet_v2, "v2", "mm-vet-v2.json", "images", 4),
    "vqav2": Download(
        "vqav2", vqav2, "val", "v2_OpenEnded_mscoco_val2014_questions.json", "val2014", 4
    ),
    "beavertails": Download("beavertails", beavertails, "train", "round0/330k/train.jsonl", "", 4),
}
