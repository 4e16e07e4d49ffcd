"""Standard streams that are closed, full, broken or of another encoding end no command."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.programs import environment
from tools import build_index

# A command that prints to both streams, then writes a file, as every command of the project does.
COMMAND = """
import sys
from pathlib import Path
from kimagenet import cli

def work(_):
    for number in range(3000):
        print(f"line {number} of the output", flush=True)
        print(f"line {number} of the errors", file=sys.stderr)
    print(TEXT)
    Path("done").write_bytes(b"data")

sys.exit(cli.run(cli.Parser("x", "", ""), work, [], is_filter=IS_FILTER))
"""


def start(
    folder: Path, how: str, text: str = "", is_filter: bool = False, **changes: str
) -> subprocess.CompletedProcess:
    """Runs the command below a shell, which says with `how` what its streams are."""
    program = COMMAND.replace("TEXT", ascii(text)).replace("IS_FILTER", str(is_filter))
    shell = ["bash", "-c", f'"$0" -c "$1" {how}', sys.executable, program]
    return subprocess.run(shell, cwd=folder, env=environment(**changes), capture_output=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "how",
    [
        ">&-",
        "2>&-",
        "<&- >&- 2>&-",
        "> /dev/full 2> /dev/full",
        "> >(exit 0); sleep 0.1",
        "2> >(exec 0<&-; sleep 0.2)",
        "> out 2>&1; chmod 0 out",
        "> /dev/null < /dev/null 2>&1 3>&1 1< /dev/null",
    ],
)
def test_a_command_continues_whatever_its_streams_are(how: str, tmp_path: Path) -> None:
    ended = start(tmp_path, how)
    assert ended.returncode == 0, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert b"Exception ignored" not in ended.stderr
    assert (tmp_path / "done").read_bytes() == b"data"


def test_the_exit_code_does_not_change_when_the_reader_ends(tmp_path: Path) -> None:
    ended = start(tmp_path, '| head -n 1; exit "${PIPESTATUS[0]}"')
    assert (ended.returncode, ended.stdout) == (0, b"line 0 of the output\n")
    assert (tmp_path / "done").exists()


def test_a_filter_ends_with_its_reader(tmp_path: Path) -> None:
    ended = start(tmp_path, '| head -n 1; exit "${PIPESTATUS[0]}"', is_filter=True)
    assert (ended.returncode, ended.stdout) == (1, b"line 0 of the output\n")
    assert b"Traceback" not in ended.stderr
    assert not (tmp_path / "done").exists()


def test_a_filter_fails_if_its_output_is_lost(tmp_path: Path) -> None:
    ended = start(tmp_path, "> /dev/full", is_filter=True)
    assert ended.returncode == 1
    assert ended.stderr.endswith(b"error: stdout: No space left on device; some lines are missing\n")


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("utf-8", "cat\udcff × …", "cat\\udcff × …".encode()),
        ("latin-1", "chat é … 🐈", b"chat \xe9 \\u2026 \\U0001f408"),
        ("ascii:strict", "Füchse", b"F\\xfcchse"),
    ],
)
def test_characters_that_cannot_be_printed_are_escaped(encoding: str, text: str, shown: bytes, tmp_path: Path) -> None:
    ended = start(tmp_path, "", text, PYTHONIOENCODING=encoding)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == shown


def test_a_slow_reader_of_a_pipe_that_does_not_block_gets_every_line(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    command = [sys.executable, "-c", COMMAND.replace("TEXT", "''").replace("IS_FILTER", "False")]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=writer, stderr=subprocess.DEVNULL)
    os.close(writer)
    with open(reader, "rb") as stream:
        lines = stream.read().splitlines()
    assert process.wait(60) == 0
    assert len(lines) == 3001


def test_a_signal_handler_may_print_while_another_print_runs(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from kimagenet import cli

def work(_):
    signal.signal(signal.SIGALRM, lambda *_: print("from the handler"))
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    for number in range(20000):
        print("x" * 99)
    signal.setitimer(signal.ITIMER_REAL, 0)

sys.exit(cli.run(cli.Parser("x", "", ""), work, []))
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(b"from the handler") > 1


def test_no_data_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    program = """
import os, sys
from kimagenet import cli

def work(_):
    with open("data", "wb") as stream:
        number = stream.fileno()
        stream.write(b"data")
        stream.flush()
        os.write(1, b"printed by a C library")
        os.write(2, b"printed by a C library")
    return number < 3

sys.exit(cli.run(cli.Parser("x", "", ""), work, []))
"""
    shell = ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, program]
    assert subprocess.run(shell, cwd=tmp_path, env=environment(), check=False).returncode == 0
    assert (tmp_path / "data").read_bytes() == b"data"


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("is_closed", [False, True])
def test_a_stream_that_is_none_or_closed_is_replaced(
    name: str, is_closed: bool, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull, "w", encoding="utf-8") as closed:
        pass
    stream = closed if is_closed else None
    copy = shutil.copytree(tiny_dataset, tmp_path / "shards")
    monkeypatch.setattr(sys, name, stream)
    assert build_index.main([str(copy), "--workers=1"]) == 0
    assert getattr(sys, name) is stream


def test_ctrl_c_is_heard_while_the_output_is_dropped(tmp_path: Path) -> None:
    program = COMMAND.replace("IS_FILTER", "False").replace("range(3000)", "range(10**9)")
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), stdout=writer, stderr=writer
    ) as process:
        os.close(writer)
        os.read(reader, 100)
        os.close(reader)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130


ANSWERS = """
import os
from pipelines.system.standard_streams import take_stdout
print("before")
out = take_stdout()
os.write(1, b"a library in C\\n")
print('{"answer": 1}', file=out, flush=True)
os.write(1, b"half a line")
print(" of Python")
"""


def test_an_answer_is_free_of_what_libraries_write() -> None:
    """nvImageCodec writes a part of a line at any moment; once it followed an answer on its line."""
    done = subprocess.run([sys.executable, "-c", ANSWERS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == 'before\n{"answer": 1}\n'
    assert done.stderr == "a library in C\nhalf a line of Python\n"
