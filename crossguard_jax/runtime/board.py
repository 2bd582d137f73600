"""A board that all processes of a run read and write, without waiting for one another.

It is the key-value store of ``jax.distributed``, which process 0 serves: whatever is to be agreed
on while the devices are busy, or stuck, goes by it and not by a collective.
"""

import socket
import time
from typing import Any, Protocol, runtime_checkable

PREFIX = "crossguard"
PAUSE = 0.01
"""Seconds between connections that are tried."""


@runtime_checkable
class Board(Protocol):
    """Short texts by name."""

    def put(self, name: str, text: str) -> None:
        """Sets a text, in place of the one before."""

    def get(self, name: str) -> str | None:
        """The text, None where there is none."""

    def under(self, name: str) -> dict[int, str]:
        """Texts by the number that follows ``name/``."""

    def until_gone(self) -> None:
        """Returns once process 0 is gone, and the board with it."""


class _KeyValueBoard:
    """The board of a run of several processes."""

    def __init__(self, client: Any, address: str):
        self._client, self._address = client, address

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

    def until_gone(self) -> None:
        until_refused(self._address)


def until_refused(address: str) -> None:
    """Holds a connection, in which nothing is said, until nobody listens there any more.

    Whoever listens may end a silent connection, and a network any: what counts is that the next one
    is refused.

    Args:
        address: HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port))) as line:
                while line.recv(4096):
                    pass
        except ConnectionRefusedError:
            return
        except OSError:
            pass
        time.sleep(PAUSE)


def open_board() -> Board | None:
    """The board of this run's processes; None where there is but one, which has none to tell."""
    from jax._src import distributed  # there is no public way to the store; Orbax goes this one

    state = distributed.global_state
    if state.client is None or state.coordinator_address is None:
        return None
    return _KeyValueBoard(state.client, state.coordinator_address)
