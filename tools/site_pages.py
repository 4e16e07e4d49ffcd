"""Adds pages to the site that are not in docs/: README, changelog and others, and the Python reference.

MkDocs calls this file, see mkdocs.yml.
GitHub shows the same files, so their links are relative to the repository. Here they become links of the site. A link
to a file that the site does not have, such as the Dockerfile, becomes plain text.
"""

import posixpath
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = "docs"

# Page of the site: file of the repository.
SOURCES = {
    "index.md": "README.md",
    "benchmarks.md": "bench/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    **{f"results/{path.name}": f"bench/results/{path.name}" for path in sorted((ROOT / "bench/results").glob("*.md"))},
}
PAGES = {source: page for page, source in SOURCES.items()}
PACKAGES = {"pipelines": (), "kimagenet": ("models", "optim")}  # and those of their modules that the reference shows

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Adds the pages."""
    from mkdocs.structure.files import File

    for page, source in SOURCES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=reference(package)))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Rewrites a page's links, except in code blocks."""
    known = {file.src_uri for file in files}
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [site_links(markdown[end : fence.start()], page.file.src_uri, known), fence[0]]
        end = fence.end()
    return "".join([*parts, site_links(markdown[end:], page.file.src_uri, known)])


def site_links(text: str, page: str, known: set[str]) -> str:
    """The text with links of the repository as links of the site.

    Args:
        text: Markdown without code blocks.
        page: the site's page that it is on.
        known: the site's files.

    Returns:
        The text.
    """
    source = SOURCES.get(page, posixpath.join(DOCS, page))

    def link(found: re.Match[str]) -> str:
        target, _, anchor = found["target"].partition("#")
        if not target or re.match(r"\w+:", target):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = PAGES.get(path, posixpath.relpath(path, DOCS))
        if there not in known and (ROOT / path).is_file():
            return found["text"]
        relative = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"{found['image']}[{found['text']}]({relative}{'#' * bool(anchor)}{anchor})"

    return _LINK.sub(link, text)


def reference(package: str) -> str:
    """The Markdown of a package's reference: one entry for each public name."""
    module, submodules = import_module(package), PACKAGES[package]
    lines = [f"# Python: {package}", "", (module.__doc__ or "").strip().splitlines()[0], ""]
    lines += [f"::: {package}.{name}\n" for name in module.__all__ if name not in submodules]
    for name in submodules:
        inner = f"{package}.{name}"
        lines += [f"## {inner}", ""]
        lines += [f"::: {inner}.{member}\n    options: {{heading_level: 3}}\n" for member in names(inner)]
    return "\n".join(lines) + "\n"


def names(module: str) -> list[str]:
    """A module's public names, read from its text: kimagenet.optim would import TensorFlow."""
    text = (ROOT / module.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r"^__all__ = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)
    return re.findall(r'"(\w+)"', found[1]) if found else []
