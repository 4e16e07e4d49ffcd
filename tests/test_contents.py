"""What commands say about folders that they do not take: which files it has, and what to do with them."""

import re
from pathlib import Path

import pytest

from pipelines.shards.contents import look
from tests.helpers.odd_layouts import FOLDER, LAYOUTS, said

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "sources.md"
COMMANDS = ("build_shards", "build_index", "")


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, str]]:
    """What each command says about each folder."""
    found = {}
    for number, (name, make) in enumerate(LAYOUTS.items()):
        root = tmp_path_factory.mktemp("layouts") / f"layout{number}"
        root.mkdir()
        found[name] = said(make, root)
    return found


def row(name: str, lines: tuple[str, str, str]) -> str:
    """The line of the page about a folder: what its user reads when it is given as a source, and as shards."""
    source, shards = (line.removeprefix(f"{FOLDER}: ").replace("<", "&lt;") for line in lines[:2])
    rest = shards.removeprefix("no shards (train-00000-of-…) in this folder; it has ")
    said = "the same" if source.removeprefix("no training images found: the folder has ") == rest else rest
    return f"| {name} | {source} | {said} |"


def test_the_page_says_what_is_said(messages: dict[str, tuple[str, str, str]]) -> None:
    wanted = [row(name, lines) for name, lines in messages.items()]
    page = TABLE.read_text(encoding="utf-8").splitlines()
    assert [line for line in wanted if line not in page] == [], "\n".join(wanted)
    assert len(wanted) >= 20


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_remedy_is_the_same_command_on_the_same_folder(messages: dict[str, tuple[str, str, str]], name: str) -> None:
    """Nor does a command send a user to another that sends back."""
    sent = {}
    for command, line in zip(COMMANDS, messages[name], strict=True):
        if match := re.search(r"`python -m tools\.(\w+) (.*?)`", line):
            target = match[2].removeprefix("--source ").split(" --output")[0]
            sent[command] = (match[1], target)
    for command, (other, target) in sent.items():
        assert (command, FOLDER) != (other, target)
        if target == FOLDER:
            there = messages[name][COMMANDS.index(other)]
            assert there.startswith("takes it") or "`python" not in there


def test_every_message_names_what_lies_there(messages: dict[str, tuple[str, str, str]]) -> None:
    """In the same words for each command, which are those of `look`."""
    for name, (source, shards, _) in messages.items():
        assert "takes it" in source or re.search(r": .{8,}; .{8,}", source), name
        assert "takes it" in shards or re.search(r"in this folder; it has .+; .+", shards), name


def test_a_large_folder_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.shards.contents._MOST_NAMES", 3)
    for number in range(9):
        (tmp_path / f"{number}.jpg").touch()
    assert look(tmp_path).what.startswith("3 images without class folders")
