"""``crossguard bench forge`` at sizes that say nothing about speed: that both sides do the same."""

import argparse
import json
import re
import sys

import numpy as np
import pytest
import torch
import transformers

from crossguard_jax import cli, verbs
from crossguard_jax.bench import attacks, forge, guard, overlap, ppo, retrieval
from crossguard_jax.bench.trl_side import Worker
from crossguard_jax.bench.trl_worker import share_of_vowels
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.hf.tokens import load_tokenizer
from crossguard_jax.impforge.ppo.rewriter import Rewriter
from crossguard_jax.impforge.triplets import Triplet

STUB = """
import json, sys
print("a library says hello", file=sys.stderr)
print(json.dumps({"trained": 7}), flush=True)
for n, line in enumerate(sys.stdin, 1):
    if n == 3:
        sys.exit("Error: out of paper")
    print(json.dumps({"said": line.strip(), "step": n}), flush=True)
"""


@pytest.mark.benches
def test_the_bench_runs_and_says_what_it_left_out(tmp_path, capsys):
    sizes = ["--runs", "1", "--batch", "4", "--threads", "1", "--vectors", "3000", "--queries", "9"]
    assert cli.main(["bench", "forge", *sizes, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "--trl-python" in shown and "| PPO iteration" not in shown
    for row in ("a loop, CLIP a token", "a loop, vectors kept", "top-1: 9 queries", "top-5"):
        assert row in shown
    document = json.loads((tmp_path / "bench_forge.json").read_text())
    assert "ppo" not in document
    assert set(document["versions"]) == {"jax", "torch", "faiss"}
    assert sum(document["anatomy"]["share"].values()) == pytest.approx(1)
    assert document["anatomy"]["seconds"]["rollout"] > 0
    ratios = [*document["overlap"]["ratio"].values()]
    ratios += [document["retrieval"][f"top_{k}"]["ratio"] for k in retrieval.KS]
    assert all(0 < r["low"] <= r["median"] <= r["high"] for r in ratios)
    assert document["retrieval"]["gflop"] == pytest.approx(2 * 9 * 3000 * 512 / 1e9)


@pytest.fixture
def words(monkeypatch):
    """A vector for each token's text in place of CLIP's."""
    tokenizer = load_tokenizer(resolve_folder("toy://rewriter"))
    texts = [tokenizer.decode([i], skip_special_tokens=True).strip() for i in range(len(tokenizer))]
    rng = np.random.default_rng(0)
    vectors = {text: rng.normal(size=8).astype(np.float32) for text in texts}
    vectors = {text: vector / np.linalg.norm(vector) for text, vector in vectors.items()}
    table = np.stack([vectors[text] for text in texts]), np.array([not text for text in texts])
    monkeypatch.setattr(overlap, "_vocabulary", lambda *a: table)
    monkeypatch.setattr(overlap, "_by_torch", lambda path: vectors.__getitem__)
    monkeypatch.setattr(overlap, "COPIED", 2**10)


def test_the_overlap_reward_is_compared_with_both_loops_beside_its_floor(words):
    figures = overlap.overlap(ppo.CONFIG, 3, 1)
    assert set(figures["ratio"]) == {"loop", "cached"} and figures["floor_seconds"] > 0
    rows = overlap.shown(figures).splitlines()[2:]
    assert ["a loop, CLIP a token" in row or "a loop, vectors kept" in row for row in rows] == [
        True
    ] * 2


def test_an_overlap_reward_that_differs_from_the_loop_is_not_timed(words, monkeypatch):
    right = overlap.overlap_reward
    monkeypatch.setattr(overlap, "overlap_reward", lambda *a: right(*a) + 1e-3)
    with pytest.raises(UserError, match="not that of the loop"):
        overlap.overlap(ppo.CONFIG, 2, 1)


def test_recall_is_that_of_equal_cosines_and_not_of_equal_rows():
    rng = np.random.default_rng(0)
    library = rng.normal(size=(50, 512)).astype(np.float32)
    library /= np.linalg.norm(library, axis=1, keepdims=True)
    library[7] = library[3]
    queries = library[[3, 20]] + np.float32(0.01)
    nearest = np.argsort(-(queries @ library.T), axis=1, kind="stable")[:, :3]
    assert retrieval.check_same(queries, library, nearest, nearest) == 1
    twin = nearest.copy()
    twin[0, :2] = twin[0, 1::-1]
    assert retrieval.check_same(queries, library, nearest, twin) == pytest.approx(4 / 6)
    wrong = nearest.copy()
    wrong[1, 2] = next(row for row in range(50) if row not in nearest[1])
    with pytest.raises(UserError, match="place 3"):
        retrieval.check_same(queries, library, nearest, wrong)


def test_the_worker_iterates_when_asked_and_says_why_it_died(tmp_path):
    stub, log = tmp_path / "stub.py", tmp_path / "log"
    stub.write_text(STUB)
    with Worker([sys.executable, str(stub)], log) as worker:
        assert worker.hello == {"trained": 7}
        assert worker.iterate() == {"said": "go", "step": 1}
        assert worker.iterate() == {"said": "go", "step": 2}
        with pytest.raises(UserError, match="out of paper"):
            worker.iterate()
    with pytest.raises(UserError, match="No module named 'nothing'"):
        Worker([sys.executable, "-c", "import nothing"], log)
    with pytest.raises(UserError, match="--trl-python"):
        Worker([str(tmp_path / "python")], log)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = ppo._make_folder(tmp_path_factory.mktemp("bench") / "llama")
    return load_config(ppo.CONFIG, [f"--config.rewriter.path={folder}"])


@pytest.fixture(scope="module")
def rewriter(config):
    return Rewriter(config.rewriter, ppo.StubRewards())


def test_the_stub_reads_the_texts_as_the_one_on_the_other_side(rewriter):
    said = ["may i touch it", "", "aeiou"]
    rows = [Triplet(text, text, "", b"", "", "", 0.0, {}) for text in said]
    found = rewriter.rewards_of(said, rows)
    np.testing.assert_allclose(found["safety"], [5 / 14, 0, 1], rtol=1e-6)
    assert [share_of_vowels(text) for text in said] == pytest.approx(found["safety"].tolist())
    assert not found["semantic"].any() and not found["overlap"].any()


def test_another_model_or_another_share_of_it_trained_is_noticed(config, rewriter):
    folder = config.rewriter.path
    prompts = np.random.default_rng(0).integers(8, 600, (2, 12)).astype(np.int32)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = torch.tensor(prompts).long()
    with torch.no_grad():
        logprobs = theirs(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])
    # PEFT trains r * (in + out) of every matrix of both models; the critic's head is one more row.
    layers = [p for n, p in theirs.named_parameters() if n.endswith("_proj.weight")]
    trained = 2 * config.rewriter.lora.rank * sum(sum(p.shape) for p in layers) + ppo.WIDTH
    hello = {"logprobs": logprobs.sum((1, 2)).tolist(), "trained": trained}
    ppo._check_equal(rewriter, prompts, hello)
    with pytest.raises(UserError, match="trains"):
        ppo._check_equal(rewriter, prompts, hello | {"trained": trained + 1})
    with pytest.raises(UserError, match="another one"):
        ppo._check_equal(rewriter, prompts, hello | {"logprobs": [-70.0, -70.0]})
    # The floor is all that the model's matrices are multiplied with, and little besides; the
    # prompt meets those of the last layer for its keys and values alone.
    text, prompt = config.rewriter.max_new_tokens, config.rewriter.prompt_length
    least, rank = 0, config.rewriter.lora.rank
    for name, weight in theirs.named_parameters():
        if name.endswith("_proj.weight"):
            last = f"layers.{ppo.LAYERS - 1}." in name and not re.search(r"\.[kv]_proj", name)
            tokens = text if last else prompt + text
            least += tokens * (weight.numel() + rank * sum(weight.shape))
    least *= 2 * config.ppo.batch_size * (3 + 2 * 2 * config.ppo.settings.epochs)
    assert 0.9 * least < ppo._flops(config, theirs.vocab_size) < 1.2 * least


@pytest.mark.parametrize(("module", "batch"), [(guard, 4), (forge, 64), (attacks, 4)])
def test_each_bench_has_a_batch_of_its_own(monkeypatch, module, batch):
    seen = []
    monkeypatch.setattr(module, "main", seen.append)
    what = module.__name__.rsplit(".", 1)[1]
    for given in (None, 3):
        verbs.bench(argparse.Namespace(what=what, batch=given))
    assert [args.batch for args in seen] == [batch, 3]
