"""Where a compiled step keeps the batch: by its collectives, on eight devices.

That eight devices agree with one proves the arithmetic alone. These read the programs.
"""

import json
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("pinned_programs.py")

LLAMA = """
    import json
    import jax
    import jax.numpy as jnp
    from crossguard_jax.core.collectives import collectives
    from crossguard_jax.core.sharding import batch_sharding, make_mesh, shardings
    from crossguard_jax.core.tree import n_bytes
    from crossguard_jax.nn import lora, pins
    from crossguard_jax.nn.llama import Cache, Llama
    from tests.small_models import llava_config

    CONFIG, KEY = llava_config().text, jax.random.key(0)
    model = jax.eval_shape(lambda: lora.attach(Llama(CONFIG, KEY), r".*_proj", 4, 8.0, KEY))
    graphdef, *parts = lora.split(model)

    def step(adapters, frozen, ids, mask):
        def loss(adapters):
            model = lora.merge(graphdef, adapters, frozen)
            return model.hidden(model.embed_tokens(ids), mask).sum()

        return jax.grad(loss)(adapters)

    def token(adapters, frozen, ids, cache):
        model = lora.merge(graphdef, adapters, frozen)
        return model.decode(model.embed_tokens(ids), cache)

    def largest(shape, decoded=False):
        mesh = make_mesh(*shape)
        on_mesh = [
            jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), part, at)
            for part in parts
            for at in [shardings(part, mesh)]
        ]
        rows = batch_sharding(mesh, size=16)
        ids, mask = (jax.ShapeDtypeStruct((16, 64), t, sharding=rows) for t in (jnp.int32, bool))
        columns = (CONFIG.num_hidden_layers, 16, CONFIG.num_key_value_heads, 64, CONFIG.head_dim)
        kv = jax.ShapeDtypeStruct(columns, jnp.float32)
        cache = Cache(kv, kv, mask, jax.ShapeDtypeStruct((), jnp.int32))
        one = jax.ShapeDtypeStruct((16, 1), jnp.int32, sharding=rows)
        program, batch = (token, (one, cache)) if decoded else (step, (ids, mask))
        text = jax.jit(program).lower(*on_mesh, *batch).compile().as_text()
        loops = [one for one in collectives(text) if one.inside_loop]
        assert {one.trips for one in loops} == {CONFIG.num_hidden_layers}
        return max(one.bytes for one in loops)

    report = {"layer": n_bytes(parts[1].layers) // CONFIG.num_hidden_layers}
    report["batch"] = 16 * 64 * CONFIG.hidden_size * 4
    report["pinned"] = [largest(shape) for shape in [(1, 8, 1), (2, 2, 2)]]
    report["decoded"] = largest((1, 8, 1), decoded=True)
    report["kernel"] = CONFIG.hidden_size * CONFIG.intermediate_size * 4
    pins.constrain = lambda x, axes, rules: x
    jax.clear_caches()
    report["free"] = largest((1, 8, 1))
    print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(run_with_devices):
    return json.loads(run_with_devices(8, LLAMA).splitlines()[-1])


def test_a_layer_sends_its_weights_and_without_pins_the_whole_batch(report):
    assert report["layer"] < report["batch"], "or this test sees nothing"
    assert max(report["pinned"]) <= report["layer"], report
    assert report["free"] >= report["batch"], report


def test_a_decoded_token_sends_states_and_no_weights(report):
    assert report["decoded"] < report["kernel"] / 2, report


STEPS = ("sft", "sft_accumulated", "mbat", "rollout", "improve", "scoring", "attack")


@pytest.fixture(scope="module", params=["1x8x1", "2x2x2"])
def programs(request, run_with_devices):
    names = STEPS if request.param == "1x8x1" else ("sft", "rollout")
    out = run_with_devices(8, PROGRAMS, request.param, *names, timeout=3600)
    return json.loads(out.splitlines()[-1])


@pytest.mark.devices
def test_no_step_sends_more_at_once_than_a_layers_weights(programs):
    assert programs["layer"] < programs["batch"], "or this test sees nothing"
    for name, program in programs["pinned"].items():
        large = [one for one in program["sent"] if one[3] > programs["layer"]]
        print(name, max(program["sent"], key=lambda one: one[3]))
        assert not large, (name, large)


@pytest.mark.devices
def test_without_pins_every_step_sends_the_batch_inside_its_loops(programs):
    for name, program in programs["free"].items():
        large = [one for one in program["sent"] if one[4] and one[3] > programs["layer"]]
        print(name, max(large, key=lambda one: one[3]))
        assert large, name


@pytest.mark.devices
def test_a_steps_state_is_written_over_where_it_lies_and_the_host_is_not_asked(programs):
    for name, program in programs["pinned"].items():
        trains = name not in ("rollout", "scoring", "attack")
        assert (program["donated"] > 0) == trains, name
        assert program["written_over"] == program["donated"] and not program["callbacks"], name
        assert not program["moved"], f"the second {name} would be another program"
