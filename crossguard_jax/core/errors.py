"""The one exception a user is meant to read, and how values stand in it."""


class UserError(Exception):
    """Something the user can mend: bad input, a wrong path, a mistyped key.

    The message is one line that says what is wrong, where (file, row or field), and the mend. The
    command line prints it without a traceback (``--debug`` shows the traceback) and exits with 1.
    """


def short(value: object, most: int = 120) -> str:
    """A value as part of a message: on one line, the middle of a long one left out."""
    # Of a value of megabytes only the ends are looked at.
    text = value if isinstance(value, str) else str(value)
    if len(text) > 4 * most:
        text = f"{text[: 2 * most]} {text[-2 * most :]}"
        return _elided(" ".join(text.split()), most)
    text = " ".join(text.split())
    return text if len(text) <= most else _elided(text, most)


def reason(error: Exception, most: int = 200) -> str:
    """What an error says, on one line; its type where it says nothing, as a `MemoryError`."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def check_divides(field: str, parts: int, of: str, n: int) -> None:
    """Raises a `UserError` that names ``field`` if ``n``, called ``of``, is not so many equal
    parts."""
    if n % parts:
        raise UserError(f"{field} {parts} does not divide {of} of {n}; give a divisor of it")


def _elided(text: str, most: int) -> str:
    end = most // 3
    return f"{text[: most - end - 3]}...{text[-end:]}"
