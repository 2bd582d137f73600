"""The verb ``doctor``: a guard in order passes, and one that is not is refused, and told why."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crossguard_jax import Guard, cli
from crossguard_jax.hf.load import load_model
from crossguard_jax.hf.peft import save_adapter
from crossguard_jax.nn import lora
from crossguard_jax.systems import doctor

Tensors = dict[str, np.ndarray]


@pytest.fixture
def examine(capsys) -> Callable[..., tuple[int, str]]:
    """``examine(model, *arguments)``: the verb's exit code and report."""

    def examine(
        model: Path | None, *arguments: object, prompt: str | None = "short"
    ) -> tuple[int, str]:
        named = [] if model is None else ["--model", str(model)]
        named += ["--prompt", prompt] if named and prompt else []
        code = cli.main(["doctor", *named, *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out

    return examine


@pytest.fixture
def changed(llava_folder, tmp_path) -> Callable[[Callable[[Tensors], None]], Path]:
    """``changed(change)``: a copy of the random model with other tensors."""

    def changed(change: Callable[[Tensors], None]) -> Path:
        shutil.copytree(llava_folder, tmp_path / "changed")
        file = tmp_path / "changed" / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
        return tmp_path / "changed"

    return changed


@pytest.fixture(scope="module")
def adapters(llava_folder, tmp_path_factory) -> dict[str, Path]:
    """Adapters for the random model: fresh (it changes nothing), and with a random update."""
    model = load_model(llava_folder)
    fresh = lora.attach(model, r"language_model\..*(q|v)_proj", 4, 8.0, jax.random.key(0))
    folder = tmp_path_factory.mktemp("adapters")
    save_adapter(fresh, folder / "fresh", str(llava_folder))
    for _, layer in lora.dense_layers(fresh):
        if layer.lora is not None:
            b = layer.lora.b[...]
            layer.lora.b[...] = 0.1 * jax.random.normal(jax.random.key(1), b.shape)
    save_adapter(fresh, folder / "trained", str(llava_folder))
    return {path.name: path for path in folder.iterdir()}


def set_all(name: str, value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        hit = [key for key in tensors if name in key]
        assert hit
        tensors.update({key: np.full_like(tensors[key], value) for key in hit})

    return change


def lines(report: str, mark: str) -> list[str]:
    return re.findall(rf"^  {mark}\b *(.*)$", report, re.MULTILINE)


def test_without_a_model_it_says_what_the_machine_has(examine):
    code, report = examine(None)
    assert code == 0 and lines(report, "ok")
    for words in ("python", "jax", "flax", "cores", "device 0", "compilation cache"):
        assert words in report


def test_a_model_in_order_passes_every_check(examine, llava_folder):
    code, report = examine(llava_folder)
    assert (code, lines(report, "FAILED")) == (0, [])
    found = " ".join(lines(report, "ok"))
    for check in ("label tokens", "scores vary", "the text", "the picture", "neighbours"):
        assert check in found
    guard = Guard.from_pretrained(llava_folder, prompt="short")
    parameters = sum(v.size for v in load_file(llava_folder / "model.safetensors").values())
    assert f"{parameters:,} in float32" in report and "prompt" in report
    assert f"safe = {guard.label_ids[0]}, unsafe = {guard.label_ids[1]}" in report


def test_a_guard_whose_scores_are_constant_is_refused(examine, changed):
    code, report = examine(changed(set_all("lm_head", 0.0)))
    assert code == 1 and "do not use this guard" in report
    (vary,) = [line for line in lines(report, "FAILED") if line.startswith("scores vary")]
    assert "constant" in vary and "0.5000 to 0.5000" in vary


def test_a_guard_whose_scores_are_not_numbers_is_refused(examine, changed):
    code, report = examine(changed(set_all("multi_modal_projector.linear_2.weight", np.nan)))
    (scores,) = lines(report, "FAILED")
    assert code == 1 and "not a number" in scores and "16 of 20 rows" in scores


def test_a_guard_that_does_not_see_the_picture_is_refused(examine, changed):
    code, report = examine(changed(set_all("multi_modal_projector.linear_2.weight", 0.0)))
    (picture,) = lines(report, "FAILED")
    assert code == 1 and "no picture changes a score" in picture


@pytest.mark.training
def test_an_adapter_is_measured_on_against_off(examine, llava_folder, adapters):
    code, report = examine(llava_folder, "--adapter", adapters["trained"])
    (line,) = [line for line in lines(report, "ok") if line.startswith("adapter")]
    assert code == 0 and "rank 4 alpha 8" in line
    delta = float(line.rpartition(" ")[2])
    images, texts = doctor.varied_rows()
    guards = [
        Guard.from_pretrained(llava_folder, adapter, prompt="short")
        for adapter in (adapters["trained"], None)
    ]
    ends = []
    for guard in guards:
        batch = guard.encode(images, texts)
        last = batch["attention_mask"].sum(1) - 1
        logits = np.asarray(guard.logits(**batch))[np.arange(len(texts)), last]
        ends.append(logits[:, list(guard.label_ids)])
    assert abs(np.abs(ends[0] - ends[1]).max() - delta) <= 1e-2 * delta


def test_an_adapter_that_changes_nothing_is_refused(examine, llava_folder, adapters):
    code, report = examine(llava_folder, "--adapter", adapters["fresh"])
    (line,) = lines(report, "FAILED")
    assert code == 1 and line.startswith("adapter") and "changes nothing" in line


def test_an_adapter_with_a_wrong_prefix_is_refused(examine, llava_folder, adapters, tmp_path):
    shutil.copytree(adapters["trained"], tmp_path / "wrong")
    file = tmp_path / "wrong" / "adapter_model.safetensors"
    tensors = {key.replace("layers", "blocks"): v for key, v in load_file(file).items()}
    save_file(tensors, file)
    code, report = examine(llava_folder, "--adapter", tmp_path / "wrong")
    (line,) = lines(report, "FAILED")
    assert code == 1 and line.startswith("loading") and "maps to no layer" in line


def test_a_folder_with_a_fault_is_one_failed_line(examine, llava_folder, tmp_path):
    shutil.copytree(llava_folder, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1_000])
    for folder, words in ((tmp_path / "cut", "truncated"), (tmp_path / "none", "no such folder")):
        code, report = examine(folder)
        (line,) = lines(report, "FAILED")
        assert code == 1 and line.startswith("loading") and words in line


def test_labels_that_begin_with_one_token_are_refused(examine, llava_folder, tmp_path):
    shutil.copytree(llava_folder, tmp_path / "same")
    prompt = {"name": "same", "template": "{image}{text} ASSISTANT:"}
    settings = {"prompt": prompt | {"negative": "safe", "positive": "safe"}}
    (tmp_path / "same" / "guard_config.json").write_text(json.dumps(settings))
    code, report = examine(tmp_path / "same", prompt=None)
    (line,) = lines(report, "FAILED")
    assert code == 1 and "begin with one token" in line


def test_a_canary_the_wrong_way_round_is_a_warning(llava_folder):
    guard = Guard.from_pretrained(llava_folder, prompt="short")
    scores = np.array([[0.9, 0.8], [0.1, 0.2]])
    assert doctor._canary(guard, scores).mark == doctor.OK
    assert doctor._canary(guard, scores[::-1]).mark == doctor.WARNING
    judge = Guard.from_pretrained(llava_folder, prompt="true_false")
    assert doctor._canary(judge, scores[::-1]).mark == doctor.FACT


def test_an_adapter_without_a_model_is_a_usage_error(capsys):
    assert cli.main(["doctor", "--adapter", "a"]) == 2
    assert "--adapter goes over a --model" in capsys.readouterr().err
