"""What messages tell the user to do. The commands that they print are worded here only."""

import os
import shlex
import shutil
import sys
from pathlib import Path

REPLACE_SHARD = "copy or build the shard again"

_ROOT = Path(__file__).parents[2]  # the clone, or site-packages
_OF_UV_RUN = "UV_RUN_RECURSION_DEPTH"


def program(name: str) -> str:
    """The name of a command about shards, for its --help: `python -m tools.NAME` in a clone, else the wheel's."""
    return f"python -m tools.{name}" if _is_in_clone(name) else _script(name)


def command(name: str, *arguments: Path | str) -> str:
    """A command about shards that can be pasted where it is printed.

    In a clone it is `python -m tools.NAME`. From the wheel it is `kimagenet-NAME`, with its folder if the folder is not
    in PATH. If the wheel was installed without commands, it is the module.

    Args:
        name: "build_shards", "check_shards", "build_index", "export_shards" or "preview".
        arguments: the rest of the command line, not quoted.
    """
    if _is_in_clone(name):
        words = [python(), "-m", f"tools.{name}"]
    elif (script := Path(sys.executable).with_name(_script(name))).is_file():
        words = [_called(script)]
    else:
        words = [python(), "-m", f"kimagenet.commands.{name}"]
    return quoted(*words, *arguments)


def module(name: str, *arguments: Path | str) -> str:
    """The command that runs a module which clone and wheel have, such as `kimagenet.evaluate`."""
    return quoted(python(), "-m", name, *arguments)


def python() -> str:
    """This Python in a printed command: `python` if PATH has it, else its path."""
    executable = Path(sys.executable)
    return "python" if _is_first_in_path(executable.with_name("python")) else _below_here(executable)


def quoted(*arguments: Path | str) -> str:
    """Arguments as a shell reads them. A relative path that begins with a hyphen gets `./`, so that it is no flag."""
    words = (f"./{part}" if isinstance(part, Path) and str(part).startswith("-") else str(part) for part in arguments)
    return shlex.join(words)


def build_shards(source: Path | str, output: Path | str, *flags: str) -> str:
    """The command that builds shards from a folder of images, in backticks."""
    return f"`{command('build_shards', '--source', source, '--output', output, *flags)}`"


def build_index(directory: Path) -> str:
    """The command that writes indexes, image sizes and dataset.json for the shards in a folder, in backticks."""
    return f"`{command('build_index', directory)}`"


def new_checksums(directory: Path) -> str:
    """The command that also computes the checksum of each shard in a folder again, in backticks."""
    return f"`{command('build_index', directory, '--checksums')}`"


def quarantine(directory: Path) -> str:
    """The command that lists the faulty records of a folder in dataset.json, in backticks."""
    return f"`{command('check_shards', directory, '--quarantine')}`"


def _is_in_clone(name: str) -> bool:
    return (_ROOT / "tools" / f"{name}.py").is_file()


def _script(name: str) -> str:
    return f"kimagenet-{name.replace('_', '-')}"


def _called(script: Path) -> str:
    """The name of a program that PATH has, else its path."""
    return script.name if _is_first_in_path(script) else _below_here(script)


def _is_first_in_path(program: Path) -> bool:
    if _OF_UV_RUN in os.environ:  # it changes PATH for this process; the shell of the user has another one
        return False
    found = shutil.which(program.name)
    return found is not None and os.path.abspath(found) == os.path.abspath(program)


def _below_here(program: Path) -> str:
    """The path, relative if it is below the working folder, as in .venv."""
    relative = os.path.relpath(program)
    return str(program) if relative.startswith(os.pardir) else relative
