"""A lone process is the run of one: it is the first, it waits for nobody, it has every array."""

import jax.numpy as jnp
import numpy as np

from crossguard_jax.runtime import processes


def test_a_lone_process_is_the_first_of_one() -> None:
    assert (processes.index(), processes.count(), processes.is_first()) == (0, 1, True)
    processes.barrier("nobody else")


def test_gathering_gives_the_host_every_array() -> None:
    tree = {"a": jnp.arange(4.0), "b": [jnp.int32(2)]}
    gathered = processes.gather(tree)
    assert all(isinstance(x, np.ndarray) for x in (gathered["a"], gathered["b"][0]))
    np.testing.assert_array_equal(gathered["a"], [0, 1, 2, 3])
