"""Why a verdict is unsafe: halves that are scored alone, categories, and maps that add up."""

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.guard.attribution import heatmaps
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.reasons import Reasons, fit_categories, spread_layers
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.guard.why import NEUTRAL, Explainer
from crossguard_jax.io.images import encode_png, rgb

OTHERS = tuple(encode_png(rgb(np.full((4, 4, 3), 10 * i, np.uint8))) for i in range(10))


class RuledSystem:
    """A system whose scores follow from a rule of picture and text."""

    def __init__(self, rule):
        self.rule, self.rows = rule, 0

    def score_each(self, images, texts, *, batch_size=16, threshold=None):
        self.rows += len(texts)
        return [
            p if isinstance(p, UserError) else Verdict(p, p >= 0.5, 0.5, "")
            for p in map(self.rule, images, texts)
        ]


def explained(rule, image=b"own", text="a text", pictures=OTHERS):
    system = RuledSystem(rule)
    verdicts = system.score_each([image], [text])
    system.rows = 0
    explainer = Explainer(system, None, Reasons(pictures=pictures))
    (why,) = explainer.explain([image], [text], verdicts)
    return why, system.rows


@pytest.mark.parametrize(
    ("rule", "joint"),
    [
        (lambda image, text: float(image == b"own" and text == "a text"), True),
        (lambda image, text: float(text == "a text"), False),
        (lambda image, text: float(image == b"own"), False),
        # Other pictures may fit a text by chance, and a few may happen to be safe.
        (lambda image, text: float(text == "a text" and image != (OTHERS[3],)), False),
        (
            lambda image, text: float(
                text == "a text" and image not in ((OTHERS[3],), (OTHERS[4],))
            ),
            True,
        ),
        (
            lambda image, text: (
                UserError("no picture")
                if image in [(p,) for p in OTHERS]
                else float(text == "a text")
            ),
            False,
        ),
    ],
    ids=["both", "text", "picture", "one_chance", "two_chances", "cannot_be_scored"],
)
def test_only_what_neither_half_says_is_unsafe_in_combination_only(rule, joint):
    why, rows = explained(rule)
    assert why.joint_only is joint
    assert rows == len(OTHERS) + 1


def test_the_halves_are_scored_beside_other_pictures_and_a_neutral_text():
    rows = []
    explained(lambda image, text: rows.append((image, text)) or 1.0)
    assert rows[1:] == [*(((picture,), "a text") for picture in OTHERS), (b"own", NEUTRAL)]


def test_without_other_pictures_a_text_is_scored_without_any():
    rows = []
    explained(lambda image, text: rows.append((image, text)) or 1.0, pictures=())
    assert rows[1:] == [((), "a text"), (b"own", NEUTRAL)]


@pytest.mark.parametrize(("image", "text"), [((), "a text"), (b"own", " ")])
def test_a_request_of_one_half_has_no_combination(image, text):
    why, rows = explained(lambda image, text: 1.0, image, text)
    assert (why.joint_only, why.text_alone, rows) == (False, None, 0)


def test_nothing_is_computed_of_a_safe_verdict_or_of_a_row_without_one():
    system = RuledSystem(lambda image, text: 1.0)
    verdicts = [Verdict(0.1, False, 0.5, ""), UserError("no")]
    whys = Explainer(system, None, Reasons(pictures=OTHERS)).explain(
        [b"x"] * 2, ["t"] * 2, verdicts
    )
    assert whys == [None, None] and not system.rows


def test_a_part_that_there_is_not_is_refused_by_name():
    with pytest.raises(UserError, match="'heat'.*halves, category, picture"):
        Explainer(RuledSystem(lambda *_: 1.0), None, parts=("heat",))


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard.from_pretrained("toy://llava", prompt="short")


def logits(guard: Guard, images, text) -> float:
    p = guard.score([images], [text])[0].p_unsafe
    return np.log(p / (1 - p))


def test_a_map_adds_up_to_what_the_pictures_add_to_the_margin(guard):
    rng = np.random.default_rng(0)
    own = [rng.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in range(2)]
    plain = [
        np.broadcast_to(np.median(x.reshape(-1, 3), axis=0).astype(np.uint8), x.shape) for x in own
    ]
    text = "can i give the red one to my child?"
    rows = [own[:1], own, ()]
    one, two, none = heatmaps(guard, rows, [text] * 3)
    assert ([x.shape for x in one], len(two), none) == ([(4, 4)], 2, [])
    for shown, without, maps in ((own[:1], plain[:1], one), (own, plain, two)):
        added = logits(guard, shown, text) - logits(guard, without, text)
        assert abs(added) > 0.05
        assert sum(x.sum() for x in maps) == pytest.approx(added, rel=0.1, abs=0.02)


def test_a_row_that_cannot_be_read_has_its_error_for_a_map(guard):
    maps = heatmaps(guard, [b"no picture", ()], ["a text", "a text"])
    assert isinstance(maps[0], UserError) and maps[1] == []


@pytest.mark.parametrize(
    ("total", "layers"), [(4, (0, 1, 2, 3)), (32, (7, 15, 23, 31)), (2, (0, 1))]
)
def test_layers_are_spread_and_the_last_is_among_them(total, layers):
    assert spread_layers(total) == layers


def test_categories_are_learned_and_their_probability_is_calibrated():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 1_200)
    # The first number tells two kinds apart from the third; those two only chance does.
    states = rng.normal(size=(1_200, 5)) + 8.0 * (labels == 2)[:, None] * np.eye(5)[0]
    numbers, temperature = fit_categories(states[:800], labels[:800], 3)
    p = Reasons(names=("a", "b", "c"), numbers=numbers, temperature=temperature).probabilities(
        states[800:]
    )
    np.testing.assert_allclose(p.sum(axis=1), 1)
    right = p.argmax(axis=1) == labels[800:]
    assert right[labels[800:] == 2].mean() > 0.98
    assert abs(p.max(axis=1).mean() - right.mean()) < 0.06


def fitted() -> Reasons:
    numbers = {
        "mean": np.zeros(2),
        "scale": np.ones(2),
        "weight": np.arange(4.0).reshape(2, 2),
        "bias": np.zeros(2),
    }
    return Reasons(OTHERS[:2], ("a", "b"), (0, 3), numbers, 1.5, "this model", {"n": 1})


def test_what_was_fitted_is_read_back(tmp_path):
    before = fitted()
    before.save(tmp_path)
    after = Reasons.read(tmp_path, "this model")
    states = np.random.default_rng(0).normal(size=(5, 2))
    assert (after.pictures, after.names, after.layers) == (OTHERS[:2], ("a", "b"), (0, 3))
    np.testing.assert_array_equal(after.probabilities(states), before.probabilities(states))


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (lambda folder: (folder / "why.json").unlink(), "not there; crossguard calibrate"),
        (lambda folder: (folder / "why.json").write_text('{"names": []}'), "damaged"),
        (lambda folder: (folder / "why.safetensors").write_bytes(b"torn"), "damaged"),
        (lambda folder: (folder / "pictures" / "1.png").unlink(), "1.png"),
        (lambda folder: Reasons(guard="other").save(folder), "another model"),
    ],
    ids=["missing", "fields", "numbers", "picture", "model"],
)
def test_a_folder_that_is_not_for_this_model_is_refused(tmp_path, break_it, match):
    fitted().save(tmp_path)
    break_it(tmp_path)
    with pytest.raises(UserError, match=match):
        Reasons.read(tmp_path, "this model")
