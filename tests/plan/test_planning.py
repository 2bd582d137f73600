"""What is printed of figures, whether something fits, and what to change."""

from dataclasses import replace
from typing import Any

import pytest
from jax.sharding import AbstractMesh

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import MESH_AXES, even_parts
from crossguard_jax.nn.llama import LlamaConfig
from crossguard_jax.plan import planning, search
from crossguard_jax.plan.chips import GIB, find_target
from crossguard_jax.plan.measure import Compiled, Sent
from crossguard_jax.plan.planning import Forecast
from crossguard_jax.plan.roofline import advice, fits, roofline

TARGET = find_target("v5litepod-16")
SIZES = {"data": 1, "fsdp": 16, "tensor": 1}
GATHERED = Sent("all-gather", "bf16", (4096, 11008), 16, 192, 16e9, True)
STEP = Compiled(
    name="training step",
    rows=32,
    kinds={"base": GIB, "adapters": GIB // 8},
    flops=16 * 197e12 * 0.3,
    needed=16 * 197e12 * 0.2,
    arguments=GIB + GIB // 8,
    outputs=GIB // 8,
    temporaries=2 * GIB,
    aliased=GIB // 8,
    moved=0.82e12 * 0.1,
    sent=(GATHERED,),
)
LARGE = replace(STEP, temporaries=20 * GIB)
REFUSED = replace(
    STEP, refused="RESOURCE_EXHAUSTED: Ran out of memory ... Used 21.81G of 15.75G hbm", sent=()
)


def plan(*programs: Compiled, **changes: Any) -> Forecast:
    return Forecast("sft", TARGET, SIZES, 32, 704, "names", 1, programs, **changes)


def test_memory_is_what_is_given_made_and_kept_less_what_is_shared() -> None:
    assert STEP.memory == 3 * GIB + GIB // 8
    assert fits([STEP], TARGET) and not fits([STEP, LARGE], TARGET)
    assert REFUSED.memory == pytest.approx(21.81 * GIB) and not fits([REFUSED], TARGET)


def test_a_step_lies_between_its_longest_bound_and_their_sum() -> None:
    line = roofline([STEP], TARGET)
    assert (line.compute, line.memory, line.wire) == pytest.approx((0.3, 0.1, 0.16))
    assert (line.best, line.worst) == pytest.approx((0.3, 0.56))
    assert line.mfu == pytest.approx((0.2 / 0.56, 0.2 / 0.3))
    assert line.bound == "products"
    two = roofline([STEP, STEP], TARGET)
    assert two.worst == pytest.approx(2 * line.worst)


def test_what_fits_has_nothing_to_change_and_what_does_not_has() -> None:
    assert advice([STEP], TARGET, SIZES, "names", True) == []
    words = " ".join(advice([LARGE], TARGET, SIZES, "names", True))
    assert "--remat full" in words and "2 rows are on a chip" in words
    assert "--remat" not in " ".join(advice([LARGE], TARGET, SIZES, "full", True))
    copies = {"data": 16, "fsdp": 1, "tensor": 1}
    whole = replace(LARGE, kinds={"base": 13 * GIB})
    assert "fsdp=16" in advice([whole], TARGET, copies, "names", True)[0]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (STEP, ["fits, 3.12 of 15.75 GiB", "base 1.00", "temporaries 2.00", "33% is done again"]),
        (
            STEP,
            ["192 x all-gather bf16[4096,11008] among 16, in layers", "300 ms", "MFU 36% to 67%"],
        ),
        (replace(STEP, beside={"judges": 2 * GIB}), ["fits, 5.12 of", "judges (meanwhile) 2.00"]),
        (LARGE, ["does not fit, 21.12 of 15.75 GiB", "change"]),
        (REFUSED, ["does not fit; the compiler says", "21.81G", "change"]),
    ],
)
def test_what_is_printed(program: Compiled, words: list[str]) -> None:
    text = "\n".join(plan(program).lines())
    assert [word for word in words if word not in text] == []


def test_rows_that_do_not_divide_over_the_chips_are_refused() -> None:
    mesh = AbstractMesh((1, 16, 1), MESH_AXES)
    with pytest.raises(UserError, match="--rows: 40 rows .* 16 devices .* all; give 48"):
        even_parts("--rows", 40, 4, mesh)
    assert [even_parts("", n, 8, mesh) for n in (16, 48, 64, 128, 256)] == [1, 3, 4, 8, 8]
    assert even_parts("", 40, 4, AbstractMesh((1, 1, 1), MESH_AXES)) == 4
    forge = load_config("configs/impforge.py:llama_7b")
    assert planning.microbatches_of(forge, "ppo") == (forge.optim.accumulate, 4)
    assert planning.microbatches_of(load_config("configs/cmai.py:llava_7b"), "attack") == (1, 1)


TEXT = LlamaConfig(32064, 4096, 11008, 32, 32, 32, 128)
SHAPE = search.Shape(14 * GIB, GIB, 704, TEXT, trains=True)


def test_candidates_divide_rows_over_devices_and_heads_over_tensor() -> None:
    every = search.candidates(16, TEXT, (16, 24), (1, 2), True)
    assert every
    for each in every:
        sizes = dict(each.sizes)
        assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] == 16
        assert each.rows % (each.accumulate * each.parts) == 0
        assert TEXT.num_key_value_heads % sizes["tensor"] == 0


def test_what_cannot_fit_is_ranked_behind_what_may() -> None:
    order = list(search.ranked(search.candidates(16, TEXT, (16,), (1,), True), SHAPE, TARGET))
    room = [memory <= 0.95 * TARGET.chip.memory for _, memory, _ in order]
    assert any(room) and not all(room) and room == sorted(room, reverse=True)
    whole = [each for each, _, _ in order if dict(each.sizes)["data"] == 16]
    assert whole and all(each in [e for e, _, _ in order[sum(room) :]] for each in whole)


def test_a_search_goes_on_until_something_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def make(config: Any, kind: str, target: Any, devices: Any, sizes: Any, *rest: Any) -> Forecast:
        compiled.append(rest[2])
        return replace(plan(STEP if len(compiled) > 3 else LARGE), sizes=sizes, remat=rest[2])

    monkeypatch.setattr(search, "make_plan", make)
    monkeypatch.setattr(search, "_shape_of", lambda *_: (SHAPE, 16))
    config = load_config("configs/guard.py:tiny")
    plans = search.search(config, "sft", TARGET, [None] * 16, tries=2)
    assert len(plans) == 4 and plans[0].fits and not plans[1].fits
    compiled.clear()
    monkeypatch.setattr(search, "make_plan", lambda *_: plan(STEP))
    assert len(search.search(config, "sft", TARGET, [None] * 16, tries=2)) == 2
