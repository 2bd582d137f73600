"""Exact search in the picture index against faiss's flat index, float32, by inner product.

faiss holds a copy of the library made beforehand (timed apart); ours reads it from the host's
memory at each search, as the index does from its file.
"""

import time
from typing import Any

import numpy as np

from crossguard_jax.bench.results import Comparison, compared, gflop_text, table
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.timing import interleave, matmul_side
from crossguard_jax.impforge.matching.index import top_k
from crossguard_jax.io.progress import rounds

WIDTH = 512
KS = (1, 5)
ROUNDING = 2e-6
"""Cosines nearer than this may come in either order."""


def retrieval(n_vectors: int, n_queries: int, threads: int, runs: int) -> dict[str, Any]:
    """Seconds of a search, on both sides, for each of `KS`.

    Args:
        n_vectors: random unit vectors in the library.
        n_queries: random unit vectors to search for.
        threads: faiss's.
        runs: counted rounds.

    Raises:
        UserError: faiss is not installed, or the two find different rows.
    """
    faiss = load_faiss()
    faiss.omp_set_num_threads(threads)
    rng = np.random.default_rng(0)
    library, queries = _unit(rng, n_vectors), _unit(rng, n_queries)
    began = time.perf_counter()
    index = faiss.IndexFlatIP(WIDTH)
    index.add(library)
    adding_seconds = time.perf_counter() - began
    nearest: dict[tuple[str, int], np.ndarray] = {}

    def by_faiss(k: int) -> None:
        nearest["faiss", k] = index.search(queries, k)[1]

    def by_jax(k: int) -> None:
        nearest["jax", k] = top_k(queries, library, k)[1]

    product, product_flops = matmul_side()
    sides: dict[str, Any] = {"matmul": product}
    for k in KS:
        sides |= {f"faiss {k}": lambda k=k: by_faiss(k), f"jax {k}": lambda k=k: by_jax(k)}
    timed = interleave(sides, rounds(runs, "retrieval"))
    flops = 2.0 * n_queries * n_vectors * WIDTH
    rate = product_flops / timed["matmul"].median
    top = {}
    for k in KS:
        same = check_same(queries, library, nearest["faiss", k], nearest["jax", k])
        theirs, ours = timed[f"faiss {k}"], timed[f"jax {k}"]
        top[f"top_{k}"] = {
            "ratio": compared(timed, f"faiss {k}", f"jax {k}"),
            "seconds": {"faiss": theirs.median, "jax": ours.median},
            "first_call_seconds": {"faiss": theirs.first, "jax": ours.first},
            "same_rows": same,
        }
    return top | {
        "vectors": n_vectors,
        "queries": n_queries,
        "width": WIDTH,
        "runs": runs,
        "adding_seconds": adding_seconds,
        "gflop": flops / 1e9,
        "floor_seconds": flops / rate,
        "matmul_gflops": rate / 1e9,
    }


def shown(figures: dict[str, Any]) -> str:
    """The table."""
    work = f"{figures['queries']:,} queries, {figures['vectors']:,} vectors"
    floor = figures["floor_seconds"], gflop_text(figures["gflop"])
    rows = []
    for k in KS:
        top = figures[f"top_{k}"]
        seconds = top["seconds"]["faiss"], top["seconds"]["jax"]
        rows.append(Comparison(f"top-{k}: {work}", "faiss flat", *seconds, top["ratio"], *floor))
    return table(rows)


def load_faiss() -> Any:
    """The module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise UserError("faiss is not installed: pip install faiss-cpu") from None
    return faiss


def check_same(
    queries: np.ndarray, library: np.ndarray, theirs: np.ndarray, ours: np.ndarray
) -> float:
    """That both found as near rows at every rank, by products in float64.

    Args:
        queries: [Q, D].
        library: [N, D].
        theirs, ours: rows found, [Q, k], the nearest first.

    Returns:
        The share of places that hold the same row; the others hold rows of equal cosine, as far as
        float32 tells.

    Raises:
        UserError: a row is farther than the other side's.
    """
    for place, (a, b) in enumerate(zip(theirs.T, ours.T, strict=True), 1):
        differ = np.flatnonzero(a != b)
        wide = queries[differ].astype(np.float64)
        gaps = np.einsum(
            "qd,qd->q", wide, library[a[differ]].astype(np.float64) - library[b[differ]]
        )
        if np.any(np.abs(gaps) > ROUNDING):
            raise UserError(f"retrieval: the two differ in recall at place {place}")
    return float((theirs == ours).mean())


def _unit(rng: np.random.Generator, n: int) -> np.ndarray:
    x = rng.standard_normal((n, WIDTH), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x
