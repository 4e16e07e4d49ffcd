"""What all command lines share. No TensorFlow: `--help` must answer at once.

Flags can be written with `-` or `_`, but not abbreviated. A wrong flag and a `UserError` give one line and exit code 2.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from kimagenet.backend import use_tensorflow
from pipelines.errors import Blocked, BlockedInterrupt, UserError, did_you_mean, one_line, reason
from pipelines.system.files import user_path
from pipelines.system.limits import core_count, limits
from pipelines.system.processes import cpu_count
from pipelines.system.standard_streams import Losses, steady_streams

EXIT_FAILED = 1  # the command did its work, but not all of it was possible; messages say what
EXIT_USER_ERROR = 2
EXIT_RESUME = 75  # EX_TEMPFAIL of sysexits.h: the run can be resumed
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells

# Signals that ask a process to end: from `kill`, from a connection that breaks, from SLURM's --signal.
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class EndRequested(KeyboardInterrupt):
    """One of `END_SIGNALS` has arrived."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations, for which `--batch_size` is `--batch-size`."""

    def __init__(self, program: str, usage: str, description: str, epilog: str = "") -> None:
        super().__init__(program, f"{program} {usage}", description, epilog, allow_abbrev=False)
        self.register("type", Path, user_path)  # so that every flag with type=Path reads ~ in the same way

    def parse_args(  # type: ignore[override]
        self, arguments: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
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
        return "; ".join(filter(None, ["no such flag", did_you_mean(argument.split("=")[0], flags)]))


def positive_int(text: str) -> int:
    """An argparse type: an int of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, not {value}")
    return value


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds --workers for a command that works in several processes."""
    text = "number of processes (default: one for each core)"
    parser.add_argument("--workers", type=positive_int, default=cpu_count(), metavar="N", help=text)


def add_decoding_threads(parser: argparse._ActionsContainer) -> None:
    """Adds --workers for a command that opens a loader."""
    text = "decoding threads; default: one for each core"
    parser.add_argument("--workers", type=positive_int, metavar="N", help=text)


def add_class_names(parser: argparse._ActionsContainer) -> None:
    """Adds --names-from for a command that needs the names of a model's classes."""
    text = "folder of shards with the class names; default: the run"
    parser.add_argument("--names-from", type=Path, metavar="DIR", help=text)


def with_hyphens(arguments: Sequence[str]) -> list[str]:
    """`--batch_size=64` as `--batch-size=64`. Values, and everything after `--`, stay as they are."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [_with_hyphens(argument) if argument.startswith("--") else argument for argument in arguments[:end]]
    return flags + list(arguments[end:])


def _with_hyphens(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def run(
    parser: Parser,
    command: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str] | None = None,
    *,
    is_filter: bool = False,
) -> int:
    """Parses and runs a command line. Prints a `UserError` as one line to stderr.

    Output that cannot be written is dropped, and the work continues; see `pipelines.system.standard_streams`.

    Args:
        parser: of the flags.
        command: does the work; returns an exit code, or None for 0.
        arguments: None: those of the process.
        is_filter: what the command prints is its result. It fails if some of it cannot be written, and ends early if
            the program that reads it has ended, as `| head`.

    Returns:
        The exit code.
    """
    with steady_streams(ends_with_reader=is_filter) as losses:
        _show_messages_of("pipelines", "kimagenet", "tools")
        for number in heard(*END_SIGNALS):
            signal.signal(number, _interrupt)
        code = _run(parser, command, arguments)
        return _with_losses(code, losses) if is_filter else code


def _run(parser: Parser, command: Callable[[argparse.Namespace], int | None], arguments: Sequence[str] | None) -> int:
    try:
        return command(parser.parse_args(arguments)) or 0
    except BrokenPipeError:
        return EXIT_FAILED
    except UserError as error:
        print(f"error: {error}{parser.flag_of(error.setting)}", file=sys.stderr)
        if isinstance(error, Blocked):
            leave_at_once(error.exit_code)
        return error.exit_code
    except OSError as error:  # a full disk, a folder without permission: the system's message is enough
        what = f"{error.filename or 'input or output'}: {reason(error)}"
        print(f"error: {one_line(what)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{_because(interrupt)}", file=sys.stderr)
        if isinstance(interrupt, BlockedInterrupt):
            leave_at_once(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED


def _with_losses(code: int, losses: Losses) -> int:
    """The exit code of a command whose output is its result."""
    if losses.error is None:
        return code
    if not isinstance(losses.error, BrokenPipeError):
        print(f"error: stdout: {losses.error.strerror}; some lines are missing", file=sys.stderr)
    return code or EXIT_FAILED


def import_tensorflow() -> None:
    """Imports TensorFlow and looks for devices, without the notes that it writes to stderr.

    Raises:
        UserError: Keras is to use another backend.
    """
    use_tensorflow()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if limits().cores is not None:  # TensorFlow sees the affinity, not the quota
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ.setdefault(name, str(core_count()))
    with without_notes():
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextmanager
def without_notes() -> Iterator[None]:
    """Hides what C++ libraries write to stderr, which no setting switches off. If the block raises, shows it."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            with suppress(OSError):
                os.write(stderr, notes.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def heard(*numbers: signal.Signals) -> list[signal.Signals]:
    """The signals to act on: not SIGHUP if the process was started to ignore it, as with `nohup`."""
    return [
        number
        for number in numbers
        if number != signal.SIGHUP or signal.getsignal(number) not in (signal.SIG_IGN, None)
    ]


def _interrupt(*_: object) -> None:
    """Such a signal ends a command like Ctrl-C: temporary files are removed, results so far are kept."""
    raise EndRequested


def leave_at_once(code: int) -> None:
    """Exits without waiting for any thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _because(interrupt: KeyboardInterrupt) -> str:
    return f": {interrupt}" if str(interrupt) else ""


def _show_messages_of(*packages: str) -> None:
    """Sends warnings of our packages to stderr, one line each, independent of TensorFlow's root logger."""
    for package in packages:
        logger = logging.getLogger(package)
        if not logger.handlers:
            logger.addHandler(_ToStderr())
            logger.propagate = False


class _ToStderr(logging.Handler):
    """Writes bare messages to the current stderr, which tests and `without_notes` replace."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a full disk must not end the work that logs
            print(record.getMessage(), file=sys.stderr)
