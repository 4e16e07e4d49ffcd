"""The code blocks of README and docs: language, text, and the comment above each that says how it is tested."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "bench/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>.*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """One fenced block.

    Attributes:
        page: the file.
        language: the word after the fence, "" if there is none.
        code: the text, with its last newline.
        mark: the text of the comment on the line above, "" if there is none.
    """

    page: Path
    language: str
    code: str
    mark: str


def blocks(page: Path) -> list[Block]:
    """A page's fenced blocks in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, m["language"], m["code"], m["mark"] or "") for m in _BLOCK.finditer(text)]


def marked(mark: str) -> list[Block]:
    """The blocks of all pages with this mark, in order."""
    return [block for page in PAGES for block in blocks(page) if block.mark == mark]


def commands(block: Block) -> list[str]:
    """A shell block's commands, one a line, without comments."""
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in block.code.splitlines())
    return [line for line in lines if line]


def prose(page: Path) -> str:
    """A page's text without its code blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def python_file(page: str, first_line: str) -> str:
    """The Python block of a page that begins with this docstring."""
    (found,) = (block.code for block in blocks(ROOT / page) if block.code.startswith(f'"""{first_line}'))
    return found
