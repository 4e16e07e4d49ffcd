"""Shows which room of the code imports which, and what breaks the order: python -m tools.structure

A room is a package, or a file at the top of one. Imports are read from the text, not run; those for type checkers
count as well. An arrow that points to a later room is upward. A circle is a pair of files that import each other,
directly or through others.
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

# From the lowest to the highest: a room imports only rooms before it, and its own files.
ROOMS = (
    "pipelines.errors",
    "pipelines.system",
    "pipelines.shards",
    "pipelines.uniform",
    "pipelines.augment",
    "pipelines.plan",
    "pipelines.decoding",
    "pipelines.loader",
    "pipelines.tf_image",
    "pipelines.loaders",
    "pipelines.building",
    "pipelines.images",
    "pipelines",
    "kimagenet.cli",
    "kimagenet.json_output",
    "kimagenet.schedule",
    "kimagenet.recipe",
    "kimagenet.models",
    "kimagenet.optim",
    "kimagenet.catalog",
    "kimagenet.models.__main__",
    "kimagenet.demo",
    "kimagenet.training",
    "kimagenet.runs",
    "kimagenet.inference",
    "kimagenet.diagnosis",
    "kimagenet.decoder_flags",
    "kimagenet.train_flags",
    "kimagenet.train",
    "kimagenet.evaluate",
    "kimagenet.predict",
    "kimagenet.export",
    "kimagenet.doctor",
    "kimagenet",
    "tools",
    "bench",
)

DESCRIPTION = """Prints the rooms of the code from the lowest to the highest, with what each imports, and counts rooms,
arrows between them, arrows that point upward, and circles. The exit code is 1 if there is an upward arrow or a circle.
"""


class Import(NamedTuple):
    """What one file imports: a module; `late` if a function does it when it is called; `typing` if for types only."""

    module: str
    late: bool
    typing: bool


@cache
def files(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the project by its dotted name, and its file."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }


@cache
def imports_of(name: str, root: Path = ROOT) -> tuple[Import, ...]:
    """All imports of a module; of `from package import module` the module."""
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
    """The room that a module is in: the longest name of `ROOMS` that it begins with."""
    fitting = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    return max(fitting, key=len)


def arrows(root: Path = ROOT) -> dict[tuple[str, str], list[str]]:
    """(room, room it imports) → the imports, as "module → module". The packages' own `__init__` files lead nowhere."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in files(root):
        if name in PACKAGES:  # its names are imported on first use
            continue
        for module, _, _ in imports_of(name, root):
            if module.split(".")[0] in PACKAGES and (ends := (room_of(name), room_of(module)))[0] != ends[1]:
                found.setdefault(ends, []).append(f"{name} → {module}")
    return found


def upward(root: Path = ROOT) -> list[str]:
    """The imports that point to a later room."""
    place = {room: number for number, room in enumerate(ROOMS)}
    return [
        text for (low, high), texts in arrows(root).items() if place[low] < place[high] for text in dict.fromkeys(texts)
    ]


def reached(name: str, *, late: bool, typing: bool = False, root: Path = ROOT) -> dict[str, str]:
    """Every module that importing `name` imports, and which one imports it.

    Args:
        name: a module.
        late: whether imports inside functions count.
        typing: whether imports for type checkers count.
        root: the checkout.
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
    """Pairs of files that reach each other by whatever imports, those for types included."""
    known = [name for name in files(root) if name not in PACKAGES]
    reach = {name: set(reached(name, late=True, typing=True, root=root)) for name in known}
    return {frozenset((a, b)) for a in known for b in reach[a] if a != b and b in reach and a in reach[b]}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(cli.Parser("python -m tools.structure", "", DESCRIPTION), show, arguments)


def show(_: argparse.Namespace) -> int:
    """Prints the rooms and the counts; returns the exit code."""
    found = arrows()
    occupied = {room_of(name) for name in files()}
    for room in (room for room in ROOMS if room in occupied):
        members = sum(room_of(name) == room for name in files())
        targets = [high for low, high in found if low == room]
        print(f"{room:22} {members:3} files  imports {', '.join(sorted(targets, key=ROOMS.index)) or 'nothing'}")
    wrong, pairs = upward(), circles()
    print(f"rooms {len(occupied)}, arrows {len(found)}, upward {len(wrong)}, circles {len(pairs)}")
    for line in (*wrong, *(" ↔ ".join(sorted(pair)) for pair in pairs)):
        print(line)
    return cli.EXIT_FAILED if wrong or pairs else 0


if __name__ == "__main__":
    sys.exit(main())
