"""Certificates of a model's answers, attacked: on a half-space, whose true radii are known."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.evals.robustness import certified as module
from crossguard_jax.evals.robustness.certified import (
    ANSWER,
    SUSPICIOUS,
    Certified,
    certificate_section,
    certified,
    figures,
)
from crossguard_jax.toy.world.sources import records

SIDE, N = 4, 24
ROWS = [replace(record, id=str(i)) for i, record in enumerate(records("implicit", "test", N))]
W = jax.random.normal(jax.random.key(3), (3 * SIDE * SIDE,))
W = W / jnp.linalg.norm(W)
MIDDLE = float(W.sum() / 2)


class HalfSpace(Immunized):
    """Unsafe on one side of a plane; S_c is the distance to another one."""

    def __init__(self, x: Any):
        branches = [{"below": 0.0, "do": "reject"}]
        fields = {
            "x": x,
            "task": SimpleNamespace(reader=object(), labels=("safe", "unsafe")),
            "policy": Policy.from_config({"branches": branches}),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def params(self) -> dict[str, Any]:
        return {"w": W}

    def rows(self, seen: list[Record]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self.x[: len(seen)], {"labels": np.zeros(len(seen), np.int32)}

    def predict(self, params: Any, inputs: Any, scale: Any) -> Any:
        distance = inputs["pixels"].reshape(len(scale), -1) @ params["w"] - MIDDLE
        return jax.nn.softmax(20 * jnp.stack([-distance, distance], axis=1))

    def s_c(self, params: Any, inputs: Any, x: Any) -> Any:
        return x.reshape(x.shape[0], -1) @ jnp.roll(params["w"], 1) - MIDDLE


@pytest.fixture(scope="module")
def system() -> HalfSpace:
    # Near the middle of the range, so that the planes are what bounds a perturbation.
    drawn = jax.random.uniform(jax.random.key(0), (N, 3, SIDE, SIDE), minval=0.35, maxval=0.65)
    return HalfSpace(np.asarray(drawn))


def settings(**changes: Any) -> ConfigDict:
    numbers = {"sigma": 0.1, "n0": 32, "n": 400, "alpha": 1e-6, "rows": 8, "chunk": 50}
    return ConfigDict(numbers | {"steps": 10, "samples": 4} | changes)


@pytest.fixture(scope="module")
def found(system: HalfSpace, tmp_path_factory: pytest.TempPathFactory) -> Certified:
    return certified(system, ROWS, settings(), tmp_path_factory.mktemp("cells"))


def test_no_radius_goes_beyond_the_plane(found: Certified, system: HalfSpace) -> None:
    flat = system.x.reshape(N, -1)
    for event, w, said in ((ANSWER, W, found.answers), (SUSPICIOUS, jnp.roll(W, 1), None)):
        distance = flat @ np.asarray(w) - MIDDLE
        side = np.ones(N, bool) if said is not None else found.suspicious
        assert side is not None
        proven = found.proven(event, side)
        assert (proven <= np.abs(distance) + 1e-6).all()
        # With noise around a plane the smoothed event is the plain one: most is proven.
        assert (proven > 0.3 * np.abs(distance)).mean() > 0.6


def test_the_plain_answers_are_the_models(found: Certified, system: HalfSpace) -> None:
    flat = system.x.reshape(N, -1)
    np.testing.assert_array_equal(found.answers, flat @ np.asarray(W) > MIDDLE)
    np.testing.assert_array_equal(found.suspicious, flat @ np.roll(W, 1) < MIDDLE)
    assert 0 < found.answers.sum() < N


def test_no_attack_turns_a_certificate_and_one_that_claims_too_much_is_turned(
    found: Certified,
    system: HalfSpace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for event in (ANSWER, SUSPICIOUS):
        assert not found.events[event]["turned"].any()
    # Further than any plane is away.
    honest = module.certify

    def boasting(*args: Any) -> Any:
        made = honest(*args)
        return {name: replace(own, radius=own.radius + 1.0) for name, own in made.items()}

    monkeypatch.setattr(module, "certify", boasting)
    lied = certified(system, ROWS, settings(), tmp_path)
    for event in (ANSWER, SUSPICIOUS):
        certain = ~lied.events[event]["abstained"]
        assert lied.events[event]["turned"][certain].mean() > 0.9
        assert not lied.events[event]["turned"][~certain].any()


def test_a_second_call_finds_every_batch_made(
    system: HalfSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = certified(system, ROWS[:10], settings(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and len(first.answers) == 10
    monkeypatch.setattr(module, "_batch", None)
    again = certified(system, ROWS[:10], settings(), tmp_path)
    np.testing.assert_array_equal(again.events[ANSWER]["radius"], first.events[ANSWER]["radius"])
    with pytest.raises(TypeError):  # other settings are another run
        certified(system, ROWS[:10], settings(sigma=0.2), tmp_path)


def test_figures_are_shares_of_what_the_model_says_without_noise(found: Certified) -> None:
    shares = figures(found)
    unsafe = found.answers == 1
    assert shares["unsafe.certified.0_1"].n == unsafe.sum()
    radius = found.events[ANSWER]["radius"]
    held = ~found.events[ANSWER]["abstained"] & found.events[ANSWER]["holds"]
    expected = (held & (radius >= 0.1))[unsafe].mean()
    assert shares["unsafe.certified.0_1"].value == pytest.approx(expected)
    assert shares["unsafe.certified.0"].value >= shares["unsafe.certified.0_25"].value
    assert shares["below_cut.certified.0"].n + shares["above_cut.certified.0"].n == N
    assert shares["unsafe.turned"].n == (held & (radius > 0))[unsafe].sum()
    section = certificate_section("ours", found)
    assert "ours.certificate.unsafe.certified.0_25" in dict(section.all_figures())


def test_what_cannot_be_certified(system: HalfSpace, tmp_path: Path) -> None:
    blind = [replace(ROWS[0], images=())]
    for rows, changes, words in (
        (blind, {}, "none of 1 rows has a picture"),
        (ROWS[:2], {"alpha": 0.7}, "certificate.alpha 0.7"),
        (ROWS[:2], {"n": 0}, "certificate.n 0"),
    ):
        with pytest.raises(UserError, match=words):
            certified(system, rows, settings(**changes), tmp_path)
