"""The one exception that users see."""


class UserError(Exception):
    """Something the user can mend: one line that names the file and the remedy.

    Command lines print it without a traceback and exit with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
