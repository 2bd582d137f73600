"""Work done ahead in threads: in order, and never more of it than is to lie in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

THREADS = min(os.cpu_count() or 1, 8)
"""Threads that decode and tokenize: libraries that release the interpreter while they do."""


def ahead(
    make: Callable[[Item], Made], items: Iterable[Item], threads: int = THREADS, bound: int = 0
) -> Iterator[Made]:
    """``map(make, items)``, made in threads while the caller does something else.

    Args:
        make: of an item; what it raises is raised in that item's turn.
        items: read as they are needed, in the caller's thread.
        threads: that make.
        bound: results that are made or waited for at once; 0 is one more than there are threads.
    """
    bound = bound or threads + 1
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, "ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) >= bound:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
