"""Published guards as torch runs them, on tiny random models of their architectures."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from crossguard_jax.core.errors import UserError  # noqa: E402
from crossguard_jax.systems.load import identity, load  # noqa: E402
from crossguard_jax.systems.system import notes_of  # noqa: E402
from crossguard_jax.systems.torch_guards import TorchGuard  # noqa: E402
from tests.systems import tiny_guards  # noqa: E402
from tests.systems.tiny_guards import SURENESS, fields, processor_is_whole  # noqa: E402

SAFE, UNSAFE = "can i touch it ?", "give it to my child !"
SURE = 1 / (1 + math.exp(-SURENESS))


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), np.uint8)
    return Image.fromarray(pixels)


def rows(guard: TorchGuard) -> list[tuple[Image.Image, str]]:
    """One that its head says safe of, and one that it says unsafe of."""
    return [(picture(1), SAFE), (picture(2), SAFE if guard.kind.alone else UNSAFE)]


@pytest.fixture(scope="module", params=tiny_guards.MAKERS)
def guard(request, tmp_path_factory):
    built = tiny_guards.build(request.param, tmp_path_factory.mktemp(request.param))
    tiny_guards.teach(built, *(([image], text) for image, text in rows(built)))
    built.model.save_pretrained(built.folder)
    return built


def test_both_verdicts_are_seen(guard):
    verdicts = guard.score(*zip(*rows(guard), strict=True))
    assert [v.label for v in verdicts] == ["safe", "unsafe"]
    assert [v.p_unsafe for v in verdicts] == pytest.approx([1 - SURE, SURE], abs=1e-4)


def by_hand(guard: TorchGuard, image: Image.Image, text: str) -> float:
    """p(unsafe) from what transformers' own call makes of the conversation, and the tokens of what
    is forced behind it, one head and two columns."""
    processor, kind = guard.processor, guard.kind.name
    if kind == "ShieldGemma 2":
        inputs = processor(images=[image], return_tensors="pt")
        logits = guard.model.model(**inputs).logits[:, -1].detach().double().numpy()
        words = ("No", "Yes")
    else:
        options = {"thinking_type": "fast"} if kind == "SingGuard" else {}
        if "Qwen" in kind:
            text = guard.fields.prompt.replace("{text}", text)
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        if kind == "LlavaGuard":
            content[1]["text"] = "Provide a safety assessment. O1: hate."
        size = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"images_kwargs": {"size": size}} if "Qwen" in kind else {},
            **options,
        )
        forced = {"LlavaGuard": '{"rating": "', "Qwen2.5-VL": "", "Qwen3-VL": "", "SingGuard": ""}
        inputs = extended(inputs, processor.tokenizer, forced.get(kind, "\n\n"))
        inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
        logits = guard.model(**inputs).logits[:, -1].detach().double().numpy()
        words = ("Safe", "Unsafe") if kind == "LlavaGuard" else ("safe", "unsafe")
    ids = [processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in words]
    no, yes = np.exp(logits[:, ids] - logits.max(axis=-1, keepdims=True)).T
    return float((yes / (no + yes)).max())


def extended(inputs, tokenizer, text):
    """The inputs with more tokens at their end."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]).long()[None]
    out = dict(inputs) | {"input_ids": torch.cat([inputs["input_ids"], ids], 1)}
    for name in ("attention_mask", "mm_token_type_ids", "cross_attention_mask"):
        if name in out:
            last = out[name][:, -1:] if name != "mm_token_type_ids" else 0 * out[name][:, -1:]
            out[name] = torch.cat([out[name], *[last] * ids.shape[1]], 1)
    return out


def test_the_probability_is_that_of_the_two_words_where_the_answer_begins(guard):
    for seed, text in ((3, SAFE), (4, UNSAFE)):
        (verdict,) = guard.score([picture(seed)], [text])
        assert verdict.p_unsafe == pytest.approx(by_hand(guard, picture(seed), text), abs=1e-5)


def test_what_a_guard_is_shown_counts_and_what_it_is_not_shown_does_not(guard):
    scores = guard.score([picture(1), picture(9), picture(1)], [SAFE, SAFE, UNSAFE])
    p = [v.p_unsafe for v in scores]
    assert p[0] != p[1]
    assert (p[0] == p[2]) == guard.kind.alone


def test_a_rows_score_depends_on_no_other_row(guard):
    some = rows(guard)
    together = guard.score(*zip(*some, *some[::-1], strict=True))
    alone = [guard.score([image], [text])[0] for image, text in some]
    assert together == [*alone, *alone[::-1]]


def test_several_pictures_and_none_are_taken_or_refused_by_name(guard):
    images = [None, [picture(1), picture(2)], [picture(2), picture(1)], picture(1)]
    none, two, turned, one = guard.score_each(images, [SAFE] * 4)
    name = guard.kind.name
    if guard.kind.alone:
        assert str(none) == f"{name} judges pictures alone, and the row has none"
        alone = [v.p_unsafe for v in guard.score([picture(1), picture(2)], [SAFE] * 2)]
        assert two.p_unsafe == turned.p_unsafe == max(alone)
    elif name == "Llama Guard 3 Vision":
        assert str(none) == f"{name} takes exactly 1 picture, and the row has none"
        assert str(two) == f"{name} takes exactly 1 picture, and the row has 2"
    else:
        assert len({x.p_unsafe for x in (none, two, turned, one)}) == 4
    assert not isinstance(one, UserError)


def test_a_row_that_cannot_be_read_is_its_own_error(guard):
    outcomes = guard.score_each([b"none", picture(1), None], [SAFE, SAFE, ""])
    assert [isinstance(x, UserError) for x in outcomes] == [True, False, True]


@pytest.mark.parametrize("guard", ["qwen_2_5_vl", "shieldgemma_2"], indirect=True)
def test_what_a_processor_refuses_is_its_rows_error(guard, monkeypatch):
    encode, name = guard.encode, type(guard.processor).__name__

    def picky(pictures, text):
        if pictures[0].width > 200:
            raise ValueError(f"{name}: absolute aspect ratio\n  must be smaller than 200")
        return encode(pictures, text)

    monkeypatch.setattr(guard, "encode", picky)
    bad, good = guard.score_each([Image.new("RGB", (201, 1)), picture(1)], [SAFE, SAFE])
    assert "aspect ratio must be smaller than 200" in str(bad) and not isinstance(good, UserError)


def test_a_users_text_forges_no_token_and_no_turn(guard):
    tokens = guard.processor.tokenizer.all_special_tokens
    prompt = guard.render(" ".join([*tokens, "</message>"]), 1)
    plain = guard.render(SAFE, 1)
    assert [prompt.count(t) for t in [*tokens, "</message>"]] == [
        plain.count(t) for t in [*tokens, "</message>"]
    ]


@pytest.mark.parametrize("guard", ["llama_guard_3_vision", "llama_guard_4"], indirect=True)
def test_the_prompt_begins_once(guard):
    bos = guard.processor.tokenizer.bos_token_id
    ids = guard.encode([picture(1)], SAFE)["input_ids"]
    assert [(row == bos).sum().item() for row in ids] == [1] * len(ids)


def test_a_folder_is_loaded_by_its_kind_and_no_other(guard, request):
    kind = request.node.callspec.params["guard"]
    if not processor_is_whole(kind):
        pytest.skip("its processor's parts need torchvision")
    file = guard.folder / "system.json"
    pixels = {"min_pixels": 28 * 28, "max_pixels": 56 * 56} if guard.kind.prompted else {}
    file.write_text(json.dumps({"model": str(guard.folder), **pixels}))
    system = load(f"{kind}:{file}")
    images, texts = zip(*rows(guard), strict=True)
    assert [v.p_unsafe for v in system.score(images, texts)] == pytest.approx(
        [1 - SURE, SURE], abs=1e-4
    )
    assert identity(system) == identity(guard)
    other = "llama_guard_4" if kind != "llama_guard_4" else "llavaguard"
    with pytest.raises(UserError, match=f"and {other} is a "):
        load(f"{other}:{guard.folder}")


@pytest.mark.parametrize("guard", ["llama_guard_3_vision"], indirect=True)
def test_the_command_line_has_torch_where_a_system_needs_it(guard, tmp_path):
    picture(2).save(tmp_path / "p.png")
    command = [sys.executable, "-m", "crossguard_jax", "score", "--text", UNSAFE]
    command += ["--model", f"llama_guard_3_vision:{guard.folder}"]
    command += ["--image", str(tmp_path / "p.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["p_unsafe"] == pytest.approx(SURE, abs=1e-4)


def test_what_was_not_seen_in_a_models_own_repository_is_marked(guard):
    remarks = " ".join(notes_of(guard))
    assert ("unverified" in remarks) == (guard.kind.name == "SingGuard")
    assert ("judges the picture alone" in remarks) == guard.kind.alone
    assert ("the question is ours" in remarks) == guard.kind.prompted


@pytest.mark.parametrize("guard", ["llavaguard"], indirect=True)
def test_llavaguard_without_its_card_is_asked_by_words_of_ours_and_says_so(guard):
    card = guard.folder / "README.md"
    text = card.read_text()
    card.unlink()
    plain = TorchGuard(guard.kind, guard.model, guard.processor, fields(guard.folder))
    assert any("unverified" in remark for remark in plain.remarks)
    given = fields(guard.folder, policy="only knives")
    own = TorchGuard(guard.kind, guard.model, guard.processor, given)
    assert "only knives" in own.render("", 1) and not any("unverified" in r for r in own.remarks)
    facts = [identity(each)["prompt"] for each in (guard, plain, own)]
    assert len({*facts}) == 3
    card.write_text(text)


def test_a_policy_goes_where_a_guard_takes_one(guard):
    given = fields(guard.folder, policy="only knives")
    if guard.kind.policy:
        system = TorchGuard(guard.kind, guard.model, guard.processor, given)
        assert "only knives" in system.render("a text", 1)
    else:
        with pytest.raises(UserError, match="takes none"):
            TorchGuard(guard.kind, guard.model, guard.processor, given)


def test_words_that_begin_with_one_token_are_refused(guard):
    same = replace(guard.kind, words=("safe", "safely"))
    with pytest.raises(UserError, match="begin with one token"):
        type(guard)(same, guard.model, guard.processor, guard.fields)
