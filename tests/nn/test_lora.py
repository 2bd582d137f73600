"""Adapters: what they add, where they attach, and that nothing else is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import digest, n_bytes, named_leaves
from crossguard_jax.nn import lora, verdict
from crossguard_jax.nn.layers import Dense
from crossguard_jax.train.step import init_state, make_step
from tests.small_models import LABELS, TARGETS, adapted, batch, llava, on_device


@pytest.fixture(scope="module")
def base():
    return llava()


@pytest.fixture(scope="module")
def rows(base):
    return on_device(batch(base.config))


@jax.jit
def _logits(model, rows, scale):
    mask, index = rows["attention_mask"] == 1, rows.get("picture_index")
    return model(rows["input_ids"], rows["pixel_values"], mask, scale, index)


def logits(model, rows, scale=1.0):
    """At every position. The scale is an array always, so that few programs are compiled."""
    return _logits(model, rows, jnp.asarray(scale, jnp.float32))


def test_a_fresh_adapter_changes_nothing(base, rows):
    fresh = lora.attach(base, TARGETS, 4, 6.0, jax.random.key(0))
    assert np.array_equal(logits(fresh, rows), logits(base, rows))


def test_scale_0_is_off_and_1_is_on(base, rows):
    model = adapted(base)
    off, on = logits(model, rows, 0.0), logits(model, rows, 1.0)
    assert np.array_equal(off, logits(base, rows))
    assert np.abs(on - off).max() > 0.1
    assert np.array_equal(on, logits(model, rows))


def test_an_update_is_alpha_over_rank_times_the_product():
    rank, alpha, x = 3, 7.5, jax.random.normal(jax.random.key(1), (2, 5, 8))
    dense = Dense(8, 6, jax.random.key(0), ("embed", "mlp"))
    plain = dense(x)
    a, b = (jax.random.normal(jax.random.key(i), s) for i, s in ((2, (8, rank)), (3, (rank, 6))))
    dense.lora = lora.Lora(a, b, alpha, ("embed", "mlp"))
    wanted = np.asarray(plain) + 2.5 * (np.asarray(x) @ np.asarray(a) @ np.asarray(b))
    np.testing.assert_allclose(dense(x), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dense(x, 0.5), (plain + wanted) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [(3,), (3, 5)])
def test_the_gradient_is_that_of_the_plain_products(rows):
    rng = np.random.default_rng(0)
    x, a, b, weights = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((*rows, 6), (6, 2), (2, 7), (*rows, 7))
    )

    def ours(x, a, b):
        return (lora.Lora(a, b, 4.0, ("embed", "mlp"))(x, 0.5) * weights).sum()

    def plain(x, a, b):
        return ((x @ a @ b) * weights).sum()  # 0.5 * alpha / R is 1

    for found, wanted in zip(
        jax.grad(ours, (0, 1, 2))(x, a, b), jax.grad(plain, (0, 1, 2))(x, a, b), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [(1,), (40,), (3, 20)], ids=str)
def test_beside_a_kernel_it_is_the_plain_products_either_way(tokens):
    rng = np.random.default_rng(1)
    x, kernel, a, b, weights = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((*tokens, 6), (6, 7), (6, 2), (2, 7), (*tokens, 7))
    )

    def ours(*operands):
        x, kernel, a, b = operands
        return (lora.Lora(a, b, 4.0, ("embed", "mlp")).beside(x, kernel, 0.5) * weights).sum()

    def plain(x, kernel, a, b):
        return ((x @ kernel + x @ a @ b) * weights).sum()  # 0.5 * alpha / R is 1

    operands, every = (x, kernel, a, b), (0, 1, 2, 3)
    for found, wanted in zip(
        jax.grad(ours, every)(*operands), jax.grad(plain, every)(*operands), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours(*operands), plain(*operands), rtol=1e-5)


def test_an_update_goes_into_the_kernel_where_that_is_less_work_and_exact():
    def wide_products(n_tokens, dtype, scale):
        update = lora.Lora(jnp.ones((8, 2)), jnp.ones((2, 8)), 4.0, ("embed", "mlp"))
        kernel, x = jnp.ones((8, 8), dtype), jnp.ones((2, n_tokens // 2, 8), dtype)
        text = jax.jit(update.beside).lower(x, kernel, scale).as_text()
        return text.count("dot_general")

    assert wide_products(4, jnp.float32, 1.0) == 2  # a @ b, and x with the sum: the same work
    assert wide_products(2, jnp.float32, 1.0) == 3
    assert wide_products(64, jnp.bfloat16, 1.0) == 3
    assert wide_products(64, jnp.float32, jnp.ones(2)) == 3


def test_each_row_takes_its_own_scale_pictures_included(base, rows):
    model, scales = adapted(base), [0.0, 1.0, 0.3, -2.0]
    mixed = logits(model, rows, scales)
    alone = [logits(model, rows, scale) for scale in scales]
    for i in range(len(scales)):
        np.testing.assert_allclose(mixed[i], alone[i][i], atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.1


def test_each_row_takes_its_own_scale_with_several_pictures_a_row(base):
    config, p = base.config, base.config.tokens_per_image
    rows = on_device(batch(config, n=2, n_text=p + 6))
    ids = np.array(rows["input_ids"])
    ids[0, p + 3 : 2 * p + 3] = config.image_token_id
    pictures = jax.random.normal(jax.random.key(5), (4, *rows["pixel_values"].shape[1:]))
    index = jnp.array([[2, 0], [3, 3]])  # the second row shows one alone
    rows |= {"input_ids": jnp.asarray(ids), "pixel_values": pictures, "picture_index": index}
    model = adapted(base)
    off, mixed, on = (logits(model, rows, scales) for scales in ([0, 0], [0, 1], [1, 1]))
    np.testing.assert_allclose(mixed, jnp.stack([off[0], on[1]]), atol=1e-5)
    assert np.abs(on - off).max() > 0.1


def test_a_picture_tower_adapter_alone_is_scaled_by_row(base, rows):
    fresh = lora.attach(base, r"vision_tower\..*\.v_proj", 4, 8.0, jax.random.key(0))
    for _, layer in lora.dense_layers(fresh):
        if layer.lora is not None:
            layer.lora.b[...] = jnp.ones_like(layer.lora.b[...])
    off, on = logits(base, rows), logits(fresh, rows, [1, 1, 1, 1])
    mixed = logits(fresh, rows, [0, 1, 0, 1])
    np.testing.assert_allclose(mixed, jnp.stack([off[0], on[1], off[2], on[3]]), atol=1e-5)
    assert np.abs(on - off).max() > 0.01


VISION, LANGUAGE = r"vision_tower\..*\.(q|v)_proj", r"language_model\..*\.(q|v)_proj"


@pytest.mark.parametrize(
    "targets, wanted",
    [
        (VISION, ["vision_tower.layers.self_attn"]),
        (LANGUAGE, ["language_model.layers.self_attn"]),
        (
            f"{VISION}|{LANGUAGE}",
            ["language_model.layers.self_attn", "vision_tower.layers.self_attn"],
        ),
    ],
)
def test_targets_choose_either_tower_or_both(base, targets, wanted):
    model = lora.attach(base, targets, 4, 8.0, jax.random.key(0))
    found = [path for path, layer in lora.dense_layers(model) if layer.lora is not None]
    assert sorted(found) == [f"{w}.{p}" for w in wanted for p in ("q_proj", "v_proj")]
    assert all(layer.lora is None for _, layer in lora.dense_layers(base)), "the base is untouched"


def test_targets_must_match_a_whole_path_and_the_error_lists_the_paths(base):
    with pytest.raises(UserError) as caught:
        lora.attach(base, "q_proj", 4, 8.0, jax.random.key(0))
    paths = [path for path, _ in lora.dense_layers(base)]
    assert len(paths) == 6 + 2 + 7
    assert all(part in str(caught.value) for part in ["'q_proj' matches no layer", *paths])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folding_layer_by_layer_rounds_as_the_whole_sum_does(base, dtype):
    model = adapted(jax.tree.map(lambda x: x.astype(dtype), base))
    folded = dict(lora.dense_layers(lora.fold(model)))
    for path, layer in lora.dense_layers(model):
        if layer.lora is None:
            continue
        update = layer.lora.alpha / layer.lora.rank * (layer.lora.a[...] @ layer.lora.b[...])
        wanted = (layer.kernel[...].astype(jnp.float32) + update).astype(dtype)
        result = folded[path].kernel[...]
        assert result.dtype == layer.kernel[...].dtype and not np.array_equal(result, layer.kernel)
        np.testing.assert_allclose(
            result.astype(jnp.float32),
            wanted.astype(jnp.float32),
            **({"rtol": 1e-6, "atol": 1e-7} if dtype == "float32" else {"rtol": 2**-7}),
        )


def intermediates(jaxpr):
    """Shapes and types of all that a traced program makes, in its loops too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from intermediates(inner)


def test_folding_needs_the_room_of_one_layers_product(compiled_as_users_do):
    shapes = (12, 128, 512), (12, 128, 4), (12, 4, 512)
    factors = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes[1:]]
    # What is made in float32 beside a stack in bfloat16 has the size of one layer.
    narrow = jax.ShapeDtypeStruct(shapes[0], jnp.bfloat16)
    made = intermediates(jax.make_jaxpr(lora._added)(narrow, *factors, 0.5).jaxpr)
    wide = [aval.size for aval in made if aval.dtype == jnp.float32]
    assert max(wide) == 128 * 512
    # As compiled, in float32: on CPU XLA widens a whole stack of bfloat16 before it loops over it.
    stack = jax.ShapeDtypeStruct(shapes[0], jnp.float32)
    memory = lora._added.lower(stack, *factors, 0.5).compile().memory_analysis()
    print(f"folding: {memory.temp_size_in_bytes / (4 * 128 * 512):.2f} of one layer's product")
    assert memory.temp_size_in_bytes <= 1.1 * 4 * 128 * 512


FOLDED = """
    import jax
    from crossguard_jax.core.sharding import make_mesh, shardings
    from crossguard_jax.nn import lora
    from tests.small_models import adapted, llava

    model = adapted(llava())
    model = jax.device_put(model, shardings(model, make_mesh(2, 2, 2)))
    split = 0
    for (path, before), (_, after) in zip(
        lora.dense_layers(model), lora.dense_layers(lora.fold(model))
    ):
        here, there = before.kernel[...].sharding, after.kernel[...].sharding
        assert here.is_equivalent_to(there, before.kernel.ndim), (path, here, there)
        split += not here.is_fully_replicated
    print(split)
"""


@pytest.mark.devices
def test_folded_kernels_lie_where_they_did(run_with_devices):
    assert int(run_with_devices(8, FOLDED)) >= 15


def test_a_folded_model_gives_the_same_logits(base, rows):
    model = adapted(base)
    folded = lora.fold(model)
    assert all(layer.lora is None for _, layer in lora.dense_layers(folded))
    difference = np.abs(logits(folded, rows) - logits(model, rows)).max()
    assert difference <= 1e-5 * max(1.0, np.abs(logits(model, rows)).max())
    assert digest(lora.detach(model)) == digest(base), "folding left the base alone"


def test_several_adapters_share_one_base(base, rows):
    graphdef, first, frozen = lora.split(adapted(base, seed=1))
    second = lora.split(adapted(base, seed=2))[1]
    scores = [logits(lora.merge(graphdef, a, frozen), rows) for a in (first, second, first)]
    assert np.array_equal(scores[0], scores[2])
    assert np.abs(scores[0] - scores[1]).max() > 0.01
    assert np.array_equal(scores[1], logits(adapted(base, seed=2), rows))
    assert digest(frozen) == digest(base)


def test_only_adapters_have_gradients_and_moments(base, rows):
    rank = 4
    graphdef, adapters, frozen = lora.split(adapted(base, rank))
    optimizer = optax.adamw(1e-2)
    before = digest(frozen)

    def loss(adapters, frozen, rows, key):
        out = verdict.label_logits(lora.merge(graphdef, adapters, frozen), rows, jnp.array(LABELS))
        return verdict.cross_entropy(out, rows["labels"]).mean(), {}

    state = init_state(adapters, optimizer, seed=0)
    adam = state.opt_state[0]
    names = [name for name, _ in named_leaves(adapters)]
    assert names and all(name.endswith((".lora.a", ".lora.b")) for name in names)
    assert [name for name, _ in named_leaves(adam.mu)] == names
    assert [name for name, _ in named_leaves(adam.nu)] == names

    # By hand: an update takes R (in + out) numbers a layer, and Adam two of each and a counter.
    numbers = sum(
        rank * sum(layer.kernel.shape[-2:]) * np.prod(layer.kernel.shape[:-2], dtype=int)
        for path, layer in lora.dense_layers(base)
        if not path.endswith(("fc1", "fc2", "linear_2"))
    )
    assert n_bytes(adapters) == 4 * numbers
    assert n_bytes(state.opt_state) == 2 * 4 * numbers + 4
    assert n_bytes(frozen) > n_bytes(adapters)

    state, metrics = make_step(loss, optimizer)(state, frozen, rows)
    assert metrics["gradient_norm"] > 0
    after = dict(named_leaves(state.trainable))
    assert all(not np.array_equal(after[n][...], v[...]) for n, v in named_leaves(adapters))
    assert digest(frozen) == before


def test_layers_that_are_left_out_stay_as_they_are_and_the_others_learn(base):
    key = jax.random.key(0)
    model = lora.attach(base, TARGETS, 3, 6.0, key, layers=(1,))
    everywhere = dict(lora.dense_layers(lora.attach(base, TARGETS, 3, 6.0, key)))
    graphdef, adapters, frozen = lora.split(model)

    def loss(adapters, frozen, batch, key):
        outputs = lora.merge(graphdef, adapters, frozen)(
            batch["input_ids"], batch["pixel_values"], batch["attention_mask"] == 1
        )
        return (outputs**2).mean(), {}

    rows = on_device(batch(base.config))
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    state, step = init_state(adapters, optimizer, seed=0), make_step(loss, optimizer)
    for _ in range(2):  # the second gradient is of factors that the first one moved
        state, _ = step(state, frozen, rows)
    trained = lora.merge(graphdef, state.trainable, frozen)
    updates = {p: layer.lora for p, layer in lora.dense_layers(trained) if layer.lora is not None}
    assert len(updates) == 11 and not any("projector" in path for path in updates)
    for path, update in updates.items():
        assert lora.adapted_layers(update) == [1], path
        assert np.asarray(update.b[...])[1].any(), path
        start = dict(lora.dense_layers(model))[path].lora.a[...]
        np.testing.assert_array_equal(start[1], everywhere[path].lora.a[1])
    for number in (3, -1):
        with pytest.raises(UserError, match=f"^lora.layers {number}: .* have layers 0 to 2"):
            lora.attach(base, TARGETS, 3, 6.0, key, layers=(0, number))
