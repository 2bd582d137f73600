"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: bad input, a wrong path, a mistyped key.

    The message is one line that says what is wrong, where (file, row or field), and the mend. The
    command line prints it without a traceback (``--debug`` shows the traceback) and exits with 1.
    """
