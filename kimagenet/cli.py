"""What all command lines share. No TensorFlow: `--help` must answer at once.

Flags read with `-` or `_`, must be written out, and a wrong one gets one line and exit code 2, as does a `UserError`.
"""

import argparse
import difflib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from pipelines.errors import Blocked, UserError, one_line

EXIT_FAILED = 1  # the command did what it could; what is wrong was said
EXIT_USER_ERROR = 2
EXIT_RESUME = 75  # EX_TEMPFAIL of sysexits.h: the same command again goes on
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations, for which `--batch_size` is `--batch-size`."""

    def __init__(self, program: str, usage: str, description: str, epilog: str = "") -> None:
        super().__init__(program, f"{program} {usage}", description, epilog, allow_abbrev=False)

    def parse_args(self, arguments=None, namespace=None):
        arguments = with_hyphens(sys.argv[1:] if arguments is None else arguments)
        known, unknown = self.parse_known_args(arguments, namespace)
        if unknown:
            self.error(f"{unknown[0]}: {self._why_unknown(unknown[0])}")
        return known

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER_ERROR, f"error: {one_line(message)} (see --help)\n")

    def flag_of(self, setting: str) -> str:
        """The flag of an argument as " (--batch-size)"; nothing if this command has none for it."""
        flag = f"--{setting.replace('_', '-')}"
        return f" ({flag})" if any(flag in action.option_strings for action in self._actions) else ""

    def _why_unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return "unexpected argument"
        flags = [flag for action in self._actions for flag in action.option_strings]
        similar = difflib.get_close_matches(argument.split("=")[0], flags, n=1)
        return "no such flag" + (f"; did you mean {similar[0]}?" if similar else "")


def positive_int(text: str) -> int:
    """An argparse type."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, not {value}")
    return value


def with_hyphens(arguments: Sequence[str]) -> list[str]:
    """`--batch_size=64` as `--batch-size=64`; values, and all that stands behind `--`, stay as they are."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [_with_hyphens(argument) if argument.startswith("--") else argument for argument in arguments[:end]]
    return flags + list(arguments[end:])


def _with_hyphens(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def run(
    parser: Parser, command: Callable[[argparse.Namespace], int | None], arguments: Sequence[str] | None = None
) -> int:
    """Parses and carries out a command line; returns its exit code, which is the command's own if it returns one.

    Errors of the user's are one line on stderr.
    """
    _show_messages_of("pipelines", "kimagenet", "tools")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = command(parser.parse_args(arguments)) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # of `| head`, which has all that it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered has to go somewhere
        return EXIT_FAILED
    except UserError as error:
        print(f"error: {error}{parser.flag_of(error.setting)}", file=sys.stderr)
        if isinstance(error, Blocked):
            _leave_at_once(error.exit_code)
        return error.exit_code
    except OSError as error:  # a full disk, a folder without permission: the system's words say it
        what = f"{error.filename or 'input or output'}: {error.strerror or error}"
        print(f"error: {one_line(what)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{_because(interrupt)}", file=sys.stderr)
        return EXIT_INTERRUPTED


def python() -> str:
    """How to call the Python that is running: relative to the working folder if it lies there, as .venv does."""
    relative = os.path.relpath(sys.executable)
    return sys.executable if relative.startswith(os.pardir) else relative


def import_tensorflow() -> None:
    """Imports TensorFlow and looks for devices, without its notes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with without_notes():
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextmanager
def without_notes() -> Iterator[None]:
    """Keeps from stderr what C++ libraries write there, which no setting can switch off; shown if the block raises."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(stderr, notes.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _interrupt(*_: object) -> None:
    """SIGTERM ends a command as Ctrl-C does: temporary files go, what was reached is kept."""
    raise KeyboardInterrupt


def _leave_at_once(code: int) -> None:
    """Without waiting for any thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _because(interrupt: KeyboardInterrupt) -> str:
    return f": {interrupt}" if str(interrupt) else ""


def _show_messages_of(*packages: str) -> None:
    """Warnings of our packages go to stderr, each one line, whatever TensorFlow does to the root logger."""
    for package in packages:
        logger = logging.getLogger(package)
        if not logger.handlers:
            logger.addHandler(_ToStderr())
            logger.propagate = False


class _ToStderr(logging.Handler):
    """Bare messages, to what stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a log on a full disk must not end what it speaks of
            print(record.getMessage(), file=sys.stderr)
