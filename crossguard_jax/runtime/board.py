"""A board that all processes of a run read and write, without waiting for one another.

It is the key-value store of ``jax.distributed``, which process 0 serves: whatever is to be agreed
on while the devices are busy, or stuck, goes by it and not by a collective.
"""

from typing import Any, Protocol, runtime_checkable

PREFIX = "crossguard"
PATIENCE = 365 * 24 * 60 * 60 * 1000
"""Milliseconds that something on the board is waited for: longer than a run."""


@runtime_checkable
class Board(Protocol):
    """Short texts by name."""

    def put(self, name: str, text: str) -> None:
        """Sets a text, in place of the one before."""

    def get(self, name: str) -> str | None:
        """The text, None where there is none."""

    def under(self, name: str) -> dict[int, str]:
        """Texts by the number that follows ``name/``."""

    def wait(self, name: str) -> None:
        """Returns once there is such a text.

        Raises:
            RuntimeError: process 0 is gone, and the board with it.
        """


class _KeyValueBoard:
    """The board of a run of several processes."""

    def __init__(self, client: Any):
        self._client = client

    def put(self, name: str, text: str) -> None:
        self._client.key_value_set(f"{PREFIX}/{name}", text, allow_overwrite=True)

    def get(self, name: str) -> str | None:
        import jax

        try:
            return self._client.key_value_try_get(f"{PREFIX}/{name}")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def under(self, name: str) -> dict[int, str]:
        rows = self._client.key_value_dir_get(f"{PREFIX}/{name}/")
        return {int(key.rpartition("/")[2]): text for key, text in rows}

    def wait(self, name: str) -> None:
        self._client.blocking_key_value_get(f"{PREFIX}/{name}", PATIENCE)


def open_board() -> Board | None:
    """The board of this run's processes; None where there is but one, which has none to tell."""
    from jax._src import distributed  # there is no public way to the store; Orbax goes this one

    client = distributed.global_state.client
    return None if client is None else _KeyValueBoard(client)
