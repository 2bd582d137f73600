import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.impforge.ppo.archive import Archive, crowd, insert, nearest


def unit(rng: np.random.Generator, n: int, width: int) -> jax.Array:
    x = rng.normal(size=(n, width)).astype(np.float32)
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def test_the_archive_remembers_the_latest_that_were_kept() -> None:
    rng = np.random.default_rng(0)
    archive, kept = Archive.empty(5, 4), []
    for _ in range(6):
        vectors, keep = unit(rng, 3, 4), rng.random(3) < 0.6
        archive = insert(archive, vectors, jnp.asarray(keep))
        kept += list(np.asarray(vectors)[keep])
        latest = np.asarray(kept[-5:])
        probe = unit(rng, 7, 4)
        expected = (
            np.maximum((np.asarray(probe) @ latest.T).max(axis=1), 0) if kept else np.zeros(7)
        )
        np.testing.assert_allclose(nearest(archive, probe), expected, atol=1e-6)
    assert int(archive.written) == len(kept) > 5


def test_nothing_is_near_in_an_empty_archive() -> None:
    archive = Archive.empty(4, 3)
    probe = unit(np.random.default_rng(0), 5, 3)
    assert not np.asarray(nearest(archive, probe)).any()
    assert not np.asarray(crowd(archive, probe[:1], 0.9)).any()


def test_a_crowd_is_counted_in_the_archive_and_earlier_in_the_batch() -> None:
    x, y = jnp.eye(3)[:1], jnp.eye(3)[1:2]
    archive = insert(Archive.empty(4, 3), jnp.concatenate([x, x]), jnp.ones(2, bool))
    found = crowd(archive, jnp.concatenate([x, y, x, y]), 0.95)
    assert found.tolist() == [2, 0, 3, 1]
