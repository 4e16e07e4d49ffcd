"""The exceptions that users see."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # file names may contain them, and terminals obey some


class UserError(Exception):
    """Something the user can fix. As text it is one line: the file, what is wrong, and the remedy.

    Command lines print this line without a traceback and exit with `exit_code`.

    Attributes:
        exit_code: 2, wrong use.
        what: what is wrong.
        path: the file or folder that it is about, or None.
        remedy: what to do about it, "" if nothing is known.
        setting: the argument that the remedy changes, by its Python name ("batch_size"); command lines add the flag.
    """

    exit_code = 2

    def __init__(self, what: str, *, path: Path | str | None = None, remedy: str = "", setting: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.path = path
        self.remedy = remedy
        self.setting = setting

    def __str__(self) -> str:
        text = self.what if self.path is None else f"{self.path}: {self.what}"
        return one_line(f"{text}; {self.remedy}" if self.remedy else text)


class RunFailed(UserError):
    """The request was right, but the work could not be finished. The line says what is kept and how to continue."""

    exit_code = 1


class Blocked(RunFailed):
    """A read has not returned. It cannot be stopped, so the process has to exit at once."""


class BlockedInterrupt(KeyboardInterrupt):
    """Interrupted while a read has not returned. It cannot be stopped, so the process has to exit at once."""


class ToBeResumed(UserError):
    """The run stopped before its end, for a reason outside the run. It can be resumed."""

    exit_code = 75


def one_line(text: str) -> str:
    """The text without characters that a terminal would take for a command or a new line."""
    return _CONTROL.sub(" ", text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion for a mistyped name, "did you mean resnet50?", or "" if no known name is similar."""
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {similar[0]}?" if similar else ""


def reason(error: OSError) -> str:
    """What the system says about an error, without the file's name: "No space left on device"."""
    return error.strerror or str(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
