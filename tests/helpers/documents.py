"""The code blocks of README and docs: language, text, and the comment above each that says what becomes of it."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "bench" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>.*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """One fenced block. `mark` is the text of the comment on the line above, "" if there is none."""

    page: Path
    language: str
    code: str
    mark: str


def blocks(page: Path) -> list[Block]:
    """A page's fenced blocks in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, m["language"], m["code"], m["mark"] or "") for m in _BLOCK.finditer(text)]


def python_file(page: str, first_line: str) -> str:
    """The Python block of a page that begins with this docstring."""
    (found,) = (block.code for block in blocks(ROOT / page) if block.code.startswith(f'"""{first_line}'))
    return found
