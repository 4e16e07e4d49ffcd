"""The one exception that users see."""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # a file's name may hold them, and a terminal obeys some


class UserError(Exception):
    """Something the user can mend: one line that names the file and the remedy.

    Command lines print it without a traceback and exit with `exit_code`: 2, wrong use.
    """

    exit_code = 2

    def __str__(self) -> str:
        return one_line(super().__str__())


class RunFailed(UserError):
    """What was asked for is right, but the work could not be ended; the line says what is kept and how to go on."""

    exit_code = 1


class Blocked(RunFailed):
    """A read has never come back. What is stuck in it would keep the process, so it has to be left at once."""


class ToBeResumed(UserError):
    """The run ended before its time, through no fault of its own; the same command again goes on."""

    exit_code = 75


def one_line(text: str) -> str:
    """Without what a terminal would take for a command or a new line."""
    return _CONTROL.sub(" ", text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
