"""What systems are called, and the controls that every table is read against."""

import json
import math
from pathlib import Path

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.evals.comparison import parse_model
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.systems import kinds
from crossguard_jax.systems.endpoint import EndpointGuard
from crossguard_jax.systems.load import identity, load
from crossguard_jax.systems.moderate import moderator
from crossguard_jax.systems.store import VerdictStore
from crossguard_jax.systems.system import System, notes_of
from tests.systems.test_store import ROWS, png

TEXT = "can i touch the red one ?"


@pytest.mark.parametrize(
    ("spec", "parsed", "name"),
    [
        ("runs/guard", ("", "runs/guard"), "guard"),
        ("toy://llava", ("", "toy://llava"), "llava"),
        ("always_safe", ("always_safe", ""), "always_safe"),
        ("text_only:runs/guard", ("text_only", "runs/guard"), "text_only_guard"),
        ("picture_only:toy://llava", ("picture_only", "toy://llava"), "picture_only_llava"),
        ("text_only:endpoint:a/gpt.json", ("text_only", "endpoint:a/gpt.json"), "text_only_gpt"),
        ("answers:toy://llava", ("answers", "toy://llava"), "answers_llava"),
        ("llama_guard_4:/m/LG-4", ("llama_guard_4", "/m/LG-4"), "LG-4"),
    ],
)
def test_a_name_says_what_a_system_is_and_what_a_table_calls_it(spec, parsed, name):
    assert kinds.parse(spec) == parsed and kinds.name_of(spec) == name


@pytest.mark.parametrize(
    ("spec", "mend"),
    [
        ("always_safe:x", "write it alone"),
        ("text_only:", "text_only:FOLDER"),
        ("alway_safe", "did you mean always_safe"),
        ("text_only", "did you mean text_only:FOLDER"),
        ("textonly:runs/guard", "did you mean text_only:FOLDER"),
        ("llama_guard4:runs/guard", "did you mean llama_guard_4:FOLDER"),
    ],
)
def test_a_mistyped_name_is_one_line_that_names_the_nearest(spec, mend):
    with pytest.raises(UserError, match=mend):
        load(spec)


def test_a_folder_of_a_kinds_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("always_safe").mkdir()
    assert kinds.parse("always_safe") == ("", "always_safe")


def test_only_what_torch_runs_asks_for_torch():
    asks = {f"{kind}:x" for kind in kinds.TORCH} | {"a=text_only:qwen_3_vl:x"}
    assert all(map(kinds.needs_torch, asks))
    others = {*kinds.CONSTANTS, "endpoint:x.json", "text_only:runs/guard", "runs/singguard"}
    assert not any(map(kinds.needs_torch, others))


@pytest.mark.parametrize("unsafe", [False, True])
def test_a_constant_says_one_thing_of_every_row_and_is_nobody_elses(unsafe, tmp_path):
    system = load("always_unsafe" if unsafe else "always_safe")
    store = VerdictStore(tmp_path, system)
    assert {(v.unsafe, v.p_unsafe, v.label) for v in store.score(ROWS)} == {
        (unsafe, float(unsafe), "unsafe" if unsafe else "safe")
    }
    other = load("always_safe" if unsafe else "always_unsafe")
    assert identity(other) != identity(system)
    assert isinstance(system, System) and notes_of(system) == ["a control: it looks at nothing"]


def test_what_asks_an_endpoint_is_remote_and_so_is_a_control_over_it(tmp_path):
    endpoint = {"base_url": "http://127.0.0.1:1", "model": "m"}
    answering, file = {"answers": str(tmp_path), "max_tokens": 8}, tmp_path / "x.json"
    for fields, kind in (
        ({"endpoint": endpoint} | answering, "answers"),
        ({"model": "toy://llava", "judge": endpoint} | answering, "answers"),
    ):
        file.write_text(json.dumps(fields))
        assert load(f"{kind}:{file}").remote and load(f"text_only:{kind}:{file}").remote
    assert EndpointGuard.remote and not load("always_safe").remote


@pytest.fixture(scope="module")
def guard(llava_folder):
    return load(llava_folder, prompt="short")


@pytest.mark.parametrize("sees", ["text", "picture"])
def test_a_control_is_the_system_with_the_other_modality_left_out(guard, llava_folder, sees):
    control = load(f"{sees}_only:{llava_folder}", prompt="short")
    images, texts = [png(1), None, (png(1), png(2)), png(3)], [TEXT, TEXT, TEXT, ""]
    outcomes = control.score_each(images, texts)
    alone = [(None, TEXT)] * 3
    if sees == "text":
        assert str(outcomes.pop()).startswith("it has no text")
    else:  # a row without a picture keeps its text
        alone = [(png(1), ""), (None, TEXT), ((png(1), png(2)), ""), (png(3), "")]
    expected = guard.score(*zip(*alone, strict=True))
    assert [v.p_unsafe for v in outcomes] == pytest.approx([v.p_unsafe for v in expected], abs=1e-6)


def test_a_control_has_verdicts_of_its_own(guard, llava_folder):
    facts = [identity(guard)]
    facts += [
        identity(load(f"{s}_only:{llava_folder}", prompt="short")) for s in ("text", "picture")
    ]
    assert all(a != b for i, a in enumerate(facts) for b in facts[:i])


def test_a_control_and_its_system_are_two_rows_of_a_table(llava_folder):
    names = [
        parse_model(f"{kind}{llava_folder}")[0] for kind in ("", "text_only:", "picture_only:")
    ]
    assert len({*names}) == 3
    assert parse_model(f"text_only:{llava_folder}+ad")[1:] == (f"text_only:{llava_folder}", "ad")


def test_moderate_is_the_guard_on_the_conversations_words(guard):
    url = {"type": "image_url", "image_url": {"url": str_url(png(1))}}
    conversations = [
        [{"role": "user", "content": TEXT}],
        [{"role": "user", "content": [url, {"type": "text", "text": TEXT}]}],
        [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "safe"}],
    ]
    p = moderator(guard)(conversations)
    texts = [TEXT, TEXT, f"User: {TEXT}\nAssistant: safe"]
    expected = guard.score([None, png(1), None], texts)
    assert p == [v.p_unsafe for v in expected] and len(set(p)) == 3
    with pytest.raises(UserError, match="row 1"):
        moderator(guard)([conversations[0], [{"role": "user", "content": ""}]])


def str_url(data: bytes) -> str:
    import base64

    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_nothing_of_a_constant_is_no_number():
    (verdict,) = load("always_safe").score([None], [TEXT])
    assert isinstance(verdict, Verdict) and not math.isnan(verdict.p_unsafe)
    assert verdict.complied is None
