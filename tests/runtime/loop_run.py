"""A loop that gathers in its body, and gathers behind it that do not wait for it, as one process
of several; a program from the cache of compiled ones does the latter first."""

from crossguard_jax.runtime.joining import initialize_if_several

initialize_if_several()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from crossguard_jax.core.sharding import make_mesh  # noqa: E402
from crossguard_jax.runtime.placement import put  # noqa: E402

mesh = make_mesh()
rows, layers = P("data"), P(None, "data")


def gather(part):
    return jax.lax.all_gather(part, "data", axis=0, tiled=True)


def program(x, weights, later):
    for _ in range(4):
        x = jnp.cos(x @ jnp.ones((32, 32)) + x[::-1])
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ gather(w)), None), x, weights)
    return x, [gather(part) for part in later]


specs = (rows, layers, [rows] * 4)
run = jax.jit(
    jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=(rows, [P()] * 4), check_vma=False)
)
shapes = ((32, 32), (4, 32, 32), [(32, 48)] * 4)
arguments = jax.tree.map(
    lambda spec, shape: put(np.ones(shape, np.float32), jax.NamedSharding(mesh, spec)),
    specs,
    shapes,
    is_leaf=lambda x: isinstance(x, P),
)
for _ in range(3):
    jax.block_until_ready(run(*arguments))
print("in one order")
