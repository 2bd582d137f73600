"""A board in memory, for processes that are objects of one test."""


class Memory:
    """As `runtime.board.Board`."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def put(self, name: str, text: str) -> None:
        self.texts[name] = text

    def get(self, name: str) -> str | None:
        return self.texts.get(name)

    def under(self, name: str) -> dict[int, str]:
        rows = [*self.texts.items()]
        return {int(k.rpartition("/")[2]): v for k, v in rows if k.startswith(f"{name}/")}

    def until_gone(self) -> None:
        """It is gone as soon as anybody asks."""


class Left(Exception):
    """Where a process would have ended."""


def left(code: int, line: str) -> None:
    raise Left(f"{code} {line}")
