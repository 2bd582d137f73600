"""Questions, captions and retrieval: the files, the answers, the attacks, the report."""

import argparse
import io
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPModel,
    CLIPProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from crossguard_jax import arguments
from crossguard_jax.attacks.problem import Budget
from crossguard_jax.attacks.registry import REGISTRY
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tasks import normalize_answer, vqa_scores
from crossguard_jax.data.records import LeftOut, Record
from crossguard_jax.evals.tasks import attack as tasks_attack
from crossguard_jax.evals.tasks import evaluate
from crossguard_jax.evals.tasks.answering import Aim, Answerer, tokenize
from crossguard_jax.evals.tasks.attack import ATTACKS, Attack, measure
from crossguard_jax.evals.tasks.evaluate import Asking, evaluate_tasks
from crossguard_jax.evals.tasks.objectives import answer_objective
from crossguard_jax.evals.tasks.report import _how
from crossguard_jax.evals.tasks.rows import Benchmark, read_benchmarks, references
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.nn import lora
from crossguard_jax.report.blocks import Plot
from crossguard_jax.report.report import Report
from crossguard_jax.report.tables import Table
from crossguard_jax.toy.world.scenes import render
from crossguard_jax.toy.world.sources import examples, records
from crossguard_jax.toy.world.vqa import caption
from tests.hf.hub_models import randomized

LEVEL = 1 / 255
N = 16
ASKING = Asking(
    question="{text}",
    caption="describe the picture.",
    answer_tokens=4,
    caption_tokens=40,
    batch_size=N,
)


def jpeg(scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(scene)).save(path, "JPEG", quality=95, subsampling=0)


def reasons(path: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in path.read_text().splitlines()]


# ---- Against transformers ----------------------------------------------------------------------


def random_llava(folder: Path, seed: int) -> Path:
    """A LLaVA of random shape and weights, with the small world's tokenizer and processor."""
    base, rng = resolve_folder("toy://llava"), random.Random(seed)
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        shutil.copy(base / name, folder)
    config = LlavaConfig.from_pretrained(base)
    config.vision_feature_layer = rng.choice([-1, -2, -3])
    config.text_config.num_hidden_layers = rng.choice([1, 2])
    config.text_config.num_key_value_heads = rng.choice([1, 2])
    config.vision_config.num_hidden_layers = rng.choice([3, 4])
    randomized(LlavaForConditionalGeneration(config), rng).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["toy", 1, 2])
def peer(request, tmp_path_factory):
    """A guard, transformers' model of the same folder, and rows with their transformers inputs."""
    folder = resolve_folder("toy://llava")
    if request.param != "toy":
        folder = random_llava(tmp_path_factory.mktemp("random") / "llava", request.param)
    guard = Guard.from_pretrained(folder, prompt="short")
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    rows = records("vqa", "val", 5, seed=3)
    inputs = [
        processor(
            images=Image.open(io.BytesIO(row.image)),
            text=f"USER: <image>\n{row.text} ASSISTANT:",
            return_tensors="pt",
        )
        for row in rows
    ]
    levels = np.stack([255 * guard.encoder.levels(row.image) for row in rows])
    texts = [row.text for row in rows]
    answerer = Answerer(guard, tokenize(guard, texts, 6), 6, 4)
    return SimpleNamespace(
        guard=guard,
        model=model,
        inputs=inputs,
        answerer=answerer,
        levels=np.round(levels).astype(np.uint8),
    )


def test_greedy_answers_are_those_of_transformers(peer):
    said = peer.answerer.answers(peer.levels, np.arange(5))
    for answer, inputs in zip(said, peer.inputs, strict=True):
        with torch.no_grad():
            ids = peer.model.generate(
                **inputs, do_sample=False, max_new_tokens=6, eos_token_id=3, pad_token_id=0
            )[0, inputs["input_ids"].shape[1] :]
        assert answer.tokens == tuple(ids.tolist())
        decoded = peer.guard.encoder.tokenizer.decode(ids, skip_special_tokens=True)
        assert answer.text == decoded.strip()


def test_the_loss_is_that_of_transformers_and_the_margin_says_whether_the_answer_changes(peer):
    rng = np.random.default_rng(0)
    own = [s.tokens for s in peer.answerer.answers(peer.levels, np.arange(5))]
    changed = []
    for tokens in own:
        other = list(tokens)
        other[rng.integers(len(other))] = int(rng.integers(10, 600))
        changed.append(tuple(other))
    encoder = peer.guard.encoder
    graphdef, *params = lora.split(peer.guard.model)
    objective = jax.jit(answer_objective(graphdef, *encoder.normalization))
    x = jnp.asarray(peer.levels, jnp.float32) / 255
    for answers in (own, changed):
        batch = peer.answerer.forced(np.arange(5), answers)
        found = objective(params, batch, x, jax.random.key(0))
        for row, (answer, inputs) in enumerate(zip(answers, peer.inputs, strict=True)):
            ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
            with torch.no_grad():
                logits = peer.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
            nats = -logits[0, -len(answer) - 1 : -1].log_softmax(-1)
            expected = nats[range(len(answer)), list(answer)].sum()
            np.testing.assert_allclose(found.loss[row], expected, rtol=2e-4, atol=2e-4)
            assert (found.margin[row] > 0) == (answer != own[row])


# ---- Questions ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vqav2(tmp_path_factory) -> Path:
    """Questions for kinds as VQA v2 lies on disk, and rows that cannot be asked."""
    root = tmp_path_factory.mktemp("vqav2")
    rows = [row for row in examples("vqa", "val", 6 * N) if row.category == "kind"][:N]
    questions, annotations = [], []
    for n, row in enumerate(rows):
        jpeg(row.scene, root / "val2014" / f"COCO_val2014_{n:012d}.jpg")
        questions.append({"question_id": n, "image_id": n, "question": row.text})
        people = [{"answer": row.answer} for _ in range(8)] + [{"answer": "a thing"}] * 2
        one = {"multiple_choice_answer": row.answer, "answer_type": "other", "answers": people}
        annotations.append({"question_id": n, "image_id": n} | one)
    questions += [
        {"question_id": 100, "image_id": 0, "question": "what is it?"},  # nobody answered
        {"question_id": 101, "image_id": 77, "question": "what is it?"},  # no picture
        {"question_id": 102, "image_id": 78, "question": "what is it?"},  # a broken one
        {"question_id": 103, "image_id": 0, "question": "what is it? " * 300},  # too long
    ]
    (root / "val2014" / "COCO_val2014_000000000078.jpg").write_bytes(b"\xff\xd8 nothing")
    annotations += [annotations[0] | {"question_id": n} for n in (101, 102, 103)]
    for name, field, content in (
        ("v2_OpenEnded_mscoco_val2014_questions", "questions", questions),
        ("v2_mscoco_val2014_annotations", "annotations", annotations),
    ):
        (root / f"{name}.json").write_text(json.dumps({field: content}))
    return root


@pytest.mark.robustness
def test_vqa_falls_under_attack_and_bad_rows_are_named(vqav2, tmp_path):
    attack = Attack((4 * LEVEL, 16 * LEVEL), steps=5)
    data = [f"kinds=vqav2:{vqav2}:val"]
    section = evaluate_tasks(["toy://llava"], data, LeftOut(tmp_path / "bad.jsonl"), attack, ASKING)
    figures = section.figures
    clean, small, large = (
        figures[f"llava.kinds.{place}.vqa_accuracy"] for place in ("clean", "linf.4", "linf.16")
    )
    assert clean.n == large.n == N
    assert clean.value >= 0.9
    assert clean.value >= small.value >= large.value
    assert large.value <= 0.3
    change = figures["llava.kinds.linf.16.vqa_accuracy_difference"]
    assert change.value == pytest.approx(large.value - clean.value)
    assert -1 <= change.low <= change.value <= change.high < 0
    found = reasons(tmp_path / "bad.jsonl")
    for word in ("does not exist", "not a picture", "has no answers", "tokens with the prompt"):
        assert sum(word in reason for reason in found) == 1, (word, found)
    assert len(found) == 4


@pytest.mark.robustness
def test_pictures_stay_in_their_ball_of_grey_levels():
    guard = Guard.from_pretrained("toy://llava", prompt="short")
    rows = records("vqa", "val", 4)
    levels = np.stack([255 * guard.encoder.levels(row.image) for row in rows])
    levels = np.round(levels).astype(np.uint8)
    answerer = Answerer(guard, tokenize(guard, [row.text for row in rows], 4), 4, 4)
    away = [Aim(answerer.tokens("kettle"))] * 4
    for budget in (
        Budget(np.float32(8 * LEVEL), steps=2),
        Budget(np.float32(0.5), "l2", steps=2),
    ):
        found = answerer.attack(levels, np.arange(4), away, jax.random.key(0), budget)
        delta = (found.astype(np.float64) - levels) / 255
        reach = {"linf": np.abs(delta).max(), "l2": np.sqrt((delta**2).sum((1, 2, 3))).max()}
        assert 0 < reach[budget.norm] <= budget.epsilon * (1 + 1e-6)


def test_an_answers_tokens_are_those_that_the_model_says_and_end():
    guard = Guard.from_pretrained("toy://llava", prompt="short")
    rows = [r for r in records("vqa", "val", 40) if r.category == "kind"][:4]
    answerer = Answerer(guard, tokenize(guard, [row.text for row in rows], 4), 4, 4)
    levels = np.stack([255 * guard.encoder.levels(row.image) for row in rows])
    said = answerer.answers(np.round(levels).astype(np.uint8), np.arange(4))
    assert [answerer.tokens(answer.text) for answer in said] == [s.tokens for s in said]
    assert guard.model.config.image_token_id not in answerer.tokens("a <image>")


# ---- Captions and retrieval --------------------------------------------------------------------


@pytest.fixture(scope="module")
def captioned() -> list[tuple]:
    """Scenes and what five people would say of each."""
    rng = np.random.default_rng(0)
    rows = examples("captions", "val", N)
    return [(row.scene, [caption(rng, row.scene) for _ in range(5)]) for row in rows]


@pytest.fixture(scope="module")
def coco(tmp_path_factory, captioned) -> Path:
    root = tmp_path_factory.mktemp("coco")
    for n, (scene, _) in enumerate(captioned):
        jpeg(scene, root / "val2017" / f"{n:012d}.jpg")
    said = [
        {"id": 10 * n + k, "image_id": n, "caption": text}
        for n, (_, texts) in enumerate(captioned)
        for k, text in enumerate(texts)
    ]
    pictures = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in range(len(captioned))]
    (root / "annotations").mkdir()
    content = {"images": pictures, "annotations": said}
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def karpathy(tmp_path_factory, captioned) -> Path:
    root = tmp_path_factory.mktemp("karpathy")
    rows = []
    for n, (scene, texts) in enumerate(captioned):
        jpeg(scene, root / "val2014" / f"{n}.jpg")
        sentences = [{"raw": text} for text in [*texts, "a sixth one that does not count"]]
        row = {"filepath": "val2014", "filename": f"{n}.jpg", "split": "test"}
        rows.append(row | {"sentences": sentences})
    rows.append({"filepath": "val2014", "filename": "0.jpg", "split": "test", "sentences": []})
    content = {"dataset": "coco", "images": rows}
    (root / "dataset_coco.json").write_text(json.dumps(content))
    return root


@pytest.mark.robustness
def test_captions_of_a_coco_folder_are_good_and_fall_under_attack(coco, tmp_path):
    attack, data = Attack((16 * LEVEL,), steps=3, aims=1), [f"coco_captions:{coco}:val2017"]
    section = evaluate_tasks(
        ["toy://llava"], data, LeftOut(tmp_path / "bad.jsonl"), attack, ASKING, limit=8
    )
    figures = section.figures
    at = "llava.coco_captions"
    for name, least in (("cider", 5.0), ("bleu4", 0.6)):
        clean, attacked = (figures[f"{at}.{place}.{name}"] for place in ("clean", "linf.16"))
        change = figures[f"{at}.linf.16.{name}_difference"]
        assert clean.n == 8
        assert clean.value > least
        assert attacked.value < 0.8 * clean.value
        assert change.value == pytest.approx(attacked.value - clean.value)
        assert change.low < change.value < change.high < 0
    assert reasons(tmp_path / "bad.jsonl") == []
    words = section.blocks[-1]
    assert isinstance(words, Table) and len(words.rows) == 6
    assert all(clean != attacked for *_, clean, attacked in words.rows)


def naive_recalls(similarity: np.ndarray, picture: np.ndarray, k: int) -> tuple[float, float]:
    there = [np.isin(i, picture[np.argsort(-row)[:k]]) for i, row in enumerate(similarity)]
    back = [picture[j] in np.argsort(-row)[:k] for j, row in enumerate(similarity.T)]
    return float(np.mean(there)), float(np.mean(back))


def test_retrieval_is_that_of_transformers_and_falls_under_attack(karpathy, captioned, tmp_path):
    data, attack = [f"karpathy:{karpathy}"], Attack((16 * LEVEL,), steps=5)
    section = evaluate_tasks(["toy://clip"], data, LeftOut(tmp_path / "bad.jsonl"), attack, ASKING)
    folder = resolve_folder("toy://clip")
    texts = [text for _, own in captioned for text in own]
    pictures = [Image.open(karpathy / "val2014" / f"{n}.jpg") for n in range(N)]
    inputs = CLIPProcessor.from_pretrained(folder)(
        text=texts, images=pictures, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        similarity = model(**inputs).logits_per_image.numpy()
    picture = np.repeat(np.arange(N), 5)
    for k in (1, 5, 10):
        expected = naive_recalls(similarity, picture, k)
        names = [f"karpathy.clean.{way}.r{k}" for way in ("image_to_text", "text_to_image")]
        found = [section.figures[f"clip.{name}"] for name in names]
        assert [figure.value for figure in found] == pytest.approx(expected)
        assert [figure.n for figure in found] == [N, 5 * N]
    assert section.figures["clip.karpathy.clean.image_to_text.r1"].value > 0.9
    for way in ("image_to_text", "text_to_image"):
        assert section.figures[f"clip.karpathy.linf.16.{way}.r1"].value < 0.5
        assert section.figures[f"clip.karpathy.linf.16.{way}.r1_difference"].value < -0.4
    assert "no caption" in reasons(tmp_path / "bad.jsonl")[0]


def test_a_clips_normalization_is_its_processors():
    clip = load_clip("toy://clip")
    mean, std = clip.normalization
    np.testing.assert_allclose(mean, np.full((3, 1, 1), 0.49), atol=1e-6)
    np.testing.assert_allclose(std, np.full((3, 1, 1), 0.2), atol=1e-6)


# ---- The worst over attacks and radii ----------------------------------------------------------


class Fake:
    """Rows whose responses are their scores; aim ``j`` at a radius costs what ``harm`` says."""

    name, lowest = "fake", 0.0
    texts: list[str] = ["a", "b", "c", "d"]
    references: list[tuple[str, ...]] = [("x",)] * 4

    def __init__(self, harm: dict[tuple[float, int], list[float]]):
        self.levels, self._harm = np.zeros((4, 3, 1, 1), np.uint8), harm
        self.attacked: list[tuple[float, int, list[int]]] = []
        self._now: list[float] = []

    def respond(self, levels, over):
        if not self.attacked:
            return [1.0, 1.0, 1.0, 0.0]
        return self._now

    def scores(self, said):
        return np.asarray(said)

    def aims(self, clean, most):
        return [[0, 1], [0, 1], [0], [0, 1]]

    def attack(self, levels, over, aims, key, budget, name="pgd"):
        (j,) = set(aims)
        epsilon = round(float(budget.epsilon), 3)
        self.attacked.append((epsilon, j, over.tolist()))
        self._now = [self._harm[epsilon, j][r] for r in over]
        return levels

    def figures(self, said):
        return {}

    def counts(self, said):
        return {}

    def shown(self, said):
        return str(said)

    def given(self, said):
        return np.ones(len(said), bool)

    def held(self, said, row):
        return ""

    def nothing(self, row):
        return 0.0


def test_a_row_keeps_its_worst_and_what_is_lost_is_left_alone():
    harm = {
        (0.1, 0): [0.5, 2.0, 0.9, 9],
        (0.1, 1): [0.7, 0.0, 9.0, 9],
        (0.2, 0): [0.6, 9.0, 0.4, 9],
        (0.2, 1): [0.2, 9.0, 9.0, 9],
    }
    task = Fake(harm)
    assert isinstance(task, tasks_attack.PerturbedTask)
    found = measure(task, Attack((0.2, 0.1), aims=2))
    assert found.clean == [1.0, 1.0, 1.0, 0.0]
    assert found.attacked == {0.1: [0.5, 0.0, 0.9, 0.0], 0.2: [0.2, 0.0, 0.4, 0.0]}
    assert task.attacked == [
        (0.1, 0, [0, 1, 2]),
        (0.1, 1, [0, 1]),
        (0.2, 0, [0, 2]),
        (0.2, 1, [0]),
    ]


# ---- Bad input ---------------------------------------------------------------------------------


def test_rows_that_lack_something_are_named_and_the_rest_is_asked(tmp_path):
    rows = records("vqa", "val", 80)
    kind, count = (next(r for r in rows if r.category == c) for c in ("kind", "count"))
    # The model says "two". Where all people wrote "2", nothing but that is right as written.
    digit = normalize_answer(count.provenance["answer"])
    good = [kind, replace(count, provenance={"answers": "\n".join([digit] * 10)})]
    answer = {"answer": "kettle"}
    bad = [
        Record("blind", (), "what is it?", provenance=answer),
        Record("torn", (b"no picture",), "what is it?", provenance=answer | {"row": "7"}),
        Record("unanswered", (good[0].image,), "what is it?"),
        Record("silent", (good[0].image,), "  ", provenance=answer),
    ]
    data = {"kinds": Benchmark("vqa", [bad[0], good[0], *bad[1:], good[1]])}
    section = evaluate_tasks(["toy://llava"], data, LeftOut(tmp_path / "bad.jsonl"), asking=ASKING)
    figure = section.figures["llava.kinds.clean.vqa_accuracy"]
    assert (figure.value, figure.n) == (1.0, 2)
    found = {r.split(":")[0]: r for r in reasons(tmp_path / "bad.jsonl")}
    assert [*found] == ["blind", "torn", "unanswered", "silent"]
    assert "has no picture" in found["blind"] and "not a picture" in found["torn"]
    assert "no answers" in found["unanswered"] and "is empty" in found["silent"]
    only = {"kinds": Benchmark("vqa", bad)}
    with pytest.raises(UserError, match="no row can be asked"):
        evaluate_tasks(["toy://llava"], only, LeftOut(tmp_path / "bad.jsonl"), asking=ASKING)


def test_an_only_answer_counts_as_everybodys_and_a_tables_label_is_one(tmp_path):
    for row in records("vqa", "val", 2):
        (tmp_path / f"{row.id}.png").write_bytes(row.image)
        line = {"image": f"{row.id}.png", "text": row.text, "label": "The Kettle!"}
        with (tmp_path / "rows.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    with LeftOut(tmp_path / "bad.jsonl") as left_out:
        found = read_benchmarks([f"t=table:{tmp_path / 'rows.jsonl'}"], left_out)["t"]
    assert found.kind == "vqa"
    people = [references("vqa", record.provenance) for record in found.records]
    assert people == [("kettle",) * 10] * 2
    assert vqa_scores(["kettle", "pan"], people).tolist() == [1, 0]


def test_what_cannot_be_done_is_said_in_one_line(tmp_path, vqav2, karpathy):
    bad = LeftOut(tmp_path / "bad.jsonl")
    spec = f"vqav2:{vqav2}:val"
    for data, words in (
        ([f"nlvr:{vqav2}"], "READER"),
        (["vqav2"], "READER:PATH"),
        ([f"a={spec}", f"a={spec}"], "two data sets are called 'a'"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate_tasks(["toy://llava"], data, bad, limit=2)
    with pytest.raises(UserError, match="a CLIP answers no questions"):
        evaluate_tasks(["toy://clip"], [spec], bad, limit=2)
    (tmp_path / "immunized").mkdir()
    (tmp_path / "immunized" / "cmai.json").write_text("{}")
    with pytest.raises(UserError, match="immunized, and tasks asks a model in words"):
        evaluate_tasks([str(tmp_path / "immunized")], [spec], bad, limit=2)
    with pytest.raises(UserError, match="two systems"):
        data = [f"karpathy:{karpathy}"]
        evaluate_tasks(["toy://clip", "toy://clip"], data, bad, limit=2)
    with pytest.raises(UserError, match="retrieval among 1"):
        evaluate_tasks(["toy://clip"], [f"karpathy:{karpathy}"], bad, limit=1)
    with pytest.raises(UserError, match="write {text}"):
        Asking(question="what is it?")
    nan = float("nan")
    for wrong in ({"epsilons": (8.0,)}, {"epsilons": (nan,)}, {"aims": 0}, {"name": "gcg"}):
        with pytest.raises(UserError):
            Attack(**wrong)
    with pytest.raises(UserError, match="steps"):
        Attack((0.1,), steps=0)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_as_long_as_the_registry_says_and_named_in_the_report(name):
    own, attack = REGISTRY[name], Attack((0.1,), name=name)
    assert (attack.steps, attack.restarts) == (own.steps, own.restarts)
    budget = Attack((0.1,), steps=7, name=name).budget(0.1)
    assert (budget.steps, budget.restarts) == (7, own.restarts)
    assert f"by `{name}` of {own.steps} steps" in _how(attack)
    args = argparse.ArgumentParser()
    arguments.tasks(args)
    line = f"--model toy://clip --data a=b:c --out d --attack {name}".split()
    assert args.parse_args(line).steps is None is args.parse_args(line).restarts


# ---- The verb ----------------------------------------------------------------------------------


@pytest.mark.robustness
def test_the_verb_writes_a_report_of_every_figure(karpathy, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    arguments.tasks(parser)
    line = f"--model toy://clip --data test=karpathy:{karpathy}:test --out {tmp_path}"
    args = parser.parse_args(
        [*line.split(), *"--epsilon 8 2 --steps 2 --limit 12 --batch-size 12".split()]
    )
    evaluate.main(args)
    said = capsys.readouterr().out
    assert "clip.test.linf.8.image_to_text.r1 " in said
    assert f"report: {tmp_path / 'report.html'}" in said
    figures = json.loads((tmp_path / "report.json").read_text())
    ones = [figures[f"clip.test.{at}.image_to_text.r1"]["value"] for at in ("linf.2", "linf.8")]
    assert 1 >= ones[0] >= ones[1]
    assert figures["meta"]["attack"]["epsilons"] == pytest.approx([8 / 255, 2 / 255])
    assert (tmp_path / "plots" / "tasks.pdf").exists()
    text = (tmp_path / "report.md").read_text()
    assert "R@10, text to image" in text and "8/255 less clean" in text


def test_without_radii_nothing_is_attacked(karpathy, tmp_path):
    data = [f"karpathy:{karpathy}"]
    section = evaluate_tasks(
        ["toy://clip"], data, LeftOut(tmp_path / "bad.jsonl"), asking=ASKING, limit=12
    )
    assert {name.split(".")[2] for name in section.figures} == {"clean"}
    assert sum(isinstance(block, Plot) for block in section.blocks) == 1
    Report("Tasks", [section]).write(tmp_path)
