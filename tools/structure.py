"""Shows which part of the code imports which, and what is too long: python -m tools.structure

A room is a package, or a file at the top of one. Imports are read from the source text; nothing is run. Imports for
type checkers count too. An arrow is an import from one room into another. An upward arrow imports a later room. A
circle is a pair of files that import each other, directly or through other files.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kimagenet import cli

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipelines", "kimagenet", "tools", "bench")
MEASURED = (*PACKAGES, "tests")  # the folders whose files and functions are measured
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# From the lowest to the highest: a room imports only rooms before it, and its own files.
ROOMS = (
    "pipelines.errors",
    "pipelines.system",
    "pipelines.shards",
    "pipelines.ranges",
    "pipelines.uniform",
    "pipelines.operation",
    "pipelines.policy",
    "pipelines.augment",
    "pipelines.order",
    "pipelines.plan",
    "pipelines.stream",
    "pipelines.storage",
    "pipelines.decoding",
    "pipelines.loader",
    "pipelines.tf_image",
    "pipelines.loaders",
    "pipelines.building",
    "pipelines.images",
    "pipelines",
    "kimagenet.backend",
    "kimagenet.cli",
    "kimagenet.json_output",
    "kimagenet.import_path",
    "kimagenet.augmentation",
    "kimagenet.schedule",
    "kimagenet.recipe",
    "kimagenet.defaults",
    "kimagenet.class_weights",
    "kimagenet.models",
    "kimagenet.optim",
    "kimagenet.catalog",
    "kimagenet.networks",
    "kimagenet.models.__main__",
    "kimagenet.demo",
    "kimagenet.training",
    "kimagenet.runs",
    "kimagenet.inference",
    "kimagenet.diagnosis",
    "kimagenet.commands",
    "kimagenet.decoder_flags",
    "kimagenet.train_flags",
    "kimagenet.train_settings",
    "kimagenet.idle_flags",
    "kimagenet.train_report",
    "kimagenet.train",
    "kimagenet.evaluate",
    "kimagenet.predict",
    "kimagenet.export",
    "kimagenet.doctor",
    "kimagenet",
    "tools",
    "bench",
)

DESCRIPTION = f"""Prints the rooms of the code from the lowest to the highest, and what each imports. Then it prints
every upward import, every circle, every file over {MAX_FILE_LINES} lines and every function over {MAX_FUNCTION_LINES}
lines. The exit code is 1 if there are any.
"""


class Import(NamedTuple):
    """One import of a file.

    Attributes:
        module: the dotted name of the imported module.
        late: whether the import is inside a function, so that it runs when the function is called.
        typing: whether the import is for type checkers only.
    """

    module: str
    late: bool
    typing: bool


class TooLong(NamedTuple):
    """A file or a function that is too long.

    Attributes:
        place: `path`, or `path:line name` of a function.
        lines: its length; of a function without its decorators, so that a table of test parameters does not count.
        limit: the largest length that is allowed.
    """

    place: str
    lines: int
    limit: int


@cache
def files(root: Path = ROOT) -> dict[str, Path]:
    """Finds every module of the packages.

    Args:
        root: the checkout.

    Returns:
        The file of each module by its dotted name.
    """
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }


@cache
def imports_of(name: str, root: Path = ROOT) -> tuple[Import, ...]:
    """Reads the imports of a module; `from package import module` imports the module.

    Args:
        name: the dotted name of the module.
        root: the checkout.

    Returns:
        The imports in the order of the text.

    Raises:
        ValueError: an import is relative.
    """
    tree = ast.parse(files(root)[name].read_text(encoding="utf-8"))
    return tuple(_imports(tree, files(root), late=False, typing=False))


def _imports(node: ast.AST, known: dict[str, Path], late: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for_types = typing or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING")
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, late, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            if child.level:
                raise ValueError(f"imports are absolute: {ast.unparse(child)}")
            module = str(child.module)
            whole = (f"{module}.{alias.name}" for alias in child.names)
            yield from (Import(name if name in known else module, late, typing) for name in whole)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(child, known, late or is_function, for_types)


def room_of(module: str) -> str:
    """The room of a module: the longest name in `ROOMS` that its dotted name begins with."""
    fitting = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    return max(fitting, key=len)


def arrows(root: Path = ROOT) -> dict[tuple[str, str], list[str]]:
    """Collects the imports between rooms. The packages' own `__init__` files are left out: they import on first use.

    Args:
        root: the checkout.

    Returns:
        The imports as "module → module", by (room, imported room).
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in files(root):
        if name in PACKAGES:
            continue
        for module, _, _ in imports_of(name, root):
            if module.split(".")[0] in PACKAGES and (ends := (room_of(name), room_of(module)))[0] != ends[1]:
                found.setdefault(ends, []).append(f"{name} → {module}")
    return found


def upward(root: Path = ROOT) -> list[str]:
    """The imports of a later room, as "module → module"."""
    place = {room: number for number, room in enumerate(ROOMS)}
    return [
        text for (low, high), texts in arrows(root).items() if place[low] < place[high] for text in dict.fromkeys(texts)
    ]


def reached(name: str, *, late: bool, typing: bool = False, root: Path = ROOT) -> dict[str, str]:
    """Finds every module that is imported when `name` is imported.

    Args:
        name: the dotted name of a module.
        late: whether imports inside functions count.
        typing: whether imports for type checkers count.
        root: the checkout.

    Returns:
        The module that imports it, by module; "" for `name`.
    """
    known, found, waiting = files(root), {name: ""}, [name]
    while waiting:
        current = waiting.pop()
        for module, is_late, for_types in imports_of(current, root) if current in known else ():
            if (is_late and not late) or (for_types and not typing):
                continue
            parts = module.split(".")
            parents = [] if late else [".".join(parts[:end]) for end in range(1, len(parts))]  # their __init__ runs too
            for each in (*parents, module):
                if each not in found:
                    found[each] = current
                    waiting.append(each)
    return found


def circles(root: Path = ROOT) -> set[frozenset[str]]:
    """The pairs of modules that import each other, directly or through others; imports for types count."""
    known = [name for name in files(root) if name not in PACKAGES]
    reach = {name: set(reached(name, late=True, typing=True, root=root)) for name in known}
    return {frozenset((a, b)) for a in known for b in reach[a] if a != b and b in reach and a in reach[b]}


def too_long(root: Path = ROOT) -> list[TooLong]:
    """Finds the Python files and functions that are too long, those of the tests included.

    Args:
        root: the checkout.

    Returns:
        Each file and function over its limit, in the order of the paths.
    """
    found: list[TooLong] = []
    for path in (path for folder in MEASURED for path in sorted((root / folder).rglob("*.py"))):
        text, place = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        if (lines := len(text.splitlines())) > MAX_FILE_LINES:
            found.append(TooLong(place, lines, MAX_FILE_LINES))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    found.append(TooLong(f"{place}:{node.lineno} {node.name}", lines, MAX_FUNCTION_LINES))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(cli.Parser("python -m tools.structure", "", DESCRIPTION), show, arguments)


def show(_: argparse.Namespace) -> int:
    """Prints the rooms, the counts and what is wrong; returns the exit code."""
    found = arrows()
    occupied = {room_of(name) for name in files()}
    for room in (room for room in ROOMS if room in occupied):
        members = sum(room_of(name) == room for name in files())
        targets = [high for low, high in found if low == room]
        print(f"{room:22} {members:3} files  imports {', '.join(sorted(targets, key=ROOMS.index)) or 'nothing'}")
    wrong, pairs, long = upward(), circles(), too_long()
    print(
        f"rooms {len(occupied)}, arrows {len(found)}, upward {len(wrong)}, circles {len(pairs)}, too long {len(long)}"
    )
    for line in wrong:
        print(f"upward: {line}")
    for pair in sorted(map(sorted, pairs)):
        print(f"circle: {' ↔ '.join(pair)}")
    for each in long:
        print(f"too long: {each.place}, {each.lines} lines (at most {each.limit})")
    return cli.EXIT_FAILED if wrong or pairs or long else 0


if __name__ == "__main__":
    sys.exit(main())
