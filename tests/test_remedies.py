"""Every `pip install` that sources and docs print works: no name that is on no index, and pyproject's own versions."""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kimagenet.diagnosis import libraries

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

# Packages that are no dependency of the project: what they are for.
ELSEWHERE = {
    "uv": "installs the project",
    "setuptools": "builds DALI's TF plugin",
    "wheel": "builds DALI's TF plugin",
    "packaging": "builds DALI's TF plugin",
    "editables": "hatchling's editable installs",
    "pre-commit": "runs the hooks",
    "rust-just": "runs the tasks of CONTRIBUTING.md",
    "nvidia-nvimgcodec-cu12": "DALI's decoders; the doctor names it if its version does not fit DALI",
    "nvidia-nvjpeg-cu12": "DALI's decoders on a GPU; the doctor names it if it is missing",
    "nvidia-cufft-cu12": "comes with tensorflow[and-cuda]; the doctor names it if it is missing",
    "opencv-python-headless": "another reader, for bench",
    "torch": "another reader, for bench",
    "torchvision": "another reader, for bench",
}


def known() -> dict[str, Requirement]:
    """The requirements of the project and its extras, by name."""
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    return {found.name: found for found in map(Requirement, texts) if found.name != PROJECT["name"]}


def texts(path: Path) -> Iterator[str]:
    """What a file prints: the strings of a Python file, in one piece each, without what is filled in later."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield source.replace("\\\n", " ")
        return
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def commands(text: str) -> list[str]:
    """The arguments of each `pip install` in a text."""
    found = re.findall(r"pip install ((?:'[^'\n]*'|[^`&|;#\n'\"])+)", text)
    return [arguments.strip() for arguments in found if arguments.strip() not in ("{}", "")]


def printed() -> list[tuple[str, str]]:
    """(file, arguments of pip install), everywhere in the repository except in the tests."""
    suffixes = (".py", ".md", ".toml", ".yaml", ".yml", "Dockerfile", "justfile", "run")
    folders = ("kimagenet", "pipelines", "tools", "bench", "docs", ".github", ".ci")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    paths += [path for path in sorted(ROOT.iterdir()) if path.name not in ("CHANGELOG.md", ".git")]
    files = [path for path in paths if path.is_file() and path.name.endswith(suffixes)]
    return [
        (str(path.relative_to(ROOT)), arguments)
        for path in files
        for text in texts(path)
        for arguments in commands(text)
    ]


def check(arguments: str) -> None:
    """Fails unless pip could install this."""
    for word in shlex.split(arguments):
        if word.startswith("-"):
            continue
        if local := re.fullmatch(r"\.(?:\[([\w,]+)\])?", word):  # in the clone
            asked_extras = set((local[1] or "dev").split(","))
            assert asked_extras <= {*EXTRAS, "NAME"}, arguments  # NAME is a placeholder in the docs
            continue
        asked = Requirement(word.replace("{}", "0"))  # a version that is filled in later
        assert asked.name != PROJECT["name"], f"the project is on no index: {arguments}"
        if asked.name in ELSEWHERE:
            continue
        wanted = known()[asked.name]
        assert asked.specifier in ("", wanted.specifier), arguments
        assert asked.extras <= wanted.extras, arguments


PRINTED = printed()


def test_the_remedies_are_found() -> None:
    assert len(PRINTED) >= 12
    assert {"kimagenet/export.py", "kimagenet/schedule.py", "pipelines/loaders/dali/__init__.py"} <= {
        file for file, _ in PRINTED
    }


@pytest.mark.parametrize(("file", "arguments"), PRINTED)
def test_every_printed_remedy_can_be_installed(file: str, arguments: str) -> None:
    check(arguments)


@pytest.mark.parametrize("missing", [(1, -1, 11000), (1, 12000, -1), (1, -1, -1)])
def test_the_remedies_that_the_doctor_puts_together_can_be_installed(missing: tuple[int, int, int]) -> None:
    (found,) = libraries.dali_libraries(*missing)
    (arguments,) = commands(found.remedy)
    check(arguments)


@pytest.mark.parametrize(
    "arguments", ["'kimagenet[bench]'", "kimagenet", "'tf2onnx>=9'", "-e '.[nothing]'", "matplotlib-of-nobody"]
)
def test_remedies_that_do_not_work_are_found(arguments: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check(arguments)
