"""Format, lint and types, so that one command checks everything; and plain English in all texts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
THIS = "tests/test_style.py"

# Words and phrases that a reader whose second language is English may not know, with a better choice for each.
# They are regular expressions; upper and lower case are the same.
DIALECT = (
    ("anew", "again"),
    ("mend(s|ed|ing)?", "fix"),
    ("whoever", "the user, the caller"),
    ("(go|goes|going|went|gone) on", "continue"),
    ("stands(?! (in )?for)", "is"),
    ("lies (in|at|on|there|near|under|within|between|beside)", "is"),
    ("(see|sees|seen|seeing) to", "check, make sure"),
    ("(is|are) to blame", "caused it"),
    ("others each", "different ones each"),
    ("(in|of) mid-?(epoch|run|cycle|stream|training)", "in the middle of"),
    ("for ever", "forever, without limit"),
    ("(bear|bears|bearing) the name", "has the name"),
    ("which is said", "with a warning"),
    ("(is|are|was|were|be) drawn, which", "is generated, which"),
    ("drawn (data|data set|images?|pictures?|photos?)", "generated"),
    ("at leisure", "slowly"),
    ("at hand", "available"),
    ("(give|gives|gave) way", "is replaced"),
    ("(?<!fault )of (its|their|one's) own", "its own, separate"),
    ("but for", "except"),
)


@pytest.mark.parametrize("command", [["ruff", "format", "--check"], ["ruff", "check"], ["mypy"]], ids=" ".join)
def test_clean(command: list[str]) -> None:
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def texts() -> list[str]:
    """The tracked files that people read, without this one."""
    patterns = ["*.py", "*.md", "*.cc", "*.toml", "*.yml", "*.yaml", "Dockerfile", "justfile", ".ci/run"]
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("outside git: no list of the files of the project")
    return [name for name in listed.stdout.splitlines() if name != THIS]


@pytest.mark.parametrize(("word", "better"), DIALECT, ids=[word for word, _ in DIALECT])
def test_texts_are_plain_english(word: str, better: str) -> None:
    pattern = re.compile(rf"\b({word})\b", re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in texts()
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert found == [], f"better: {better}"
