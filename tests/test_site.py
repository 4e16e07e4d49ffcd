"""The documentation builds as a site without a warning, and its pages hold what they should. Needs no network."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

import kimagenet
import pipelines
from tools import site_pages

ROOT = Path(__file__).parents[1]
INNER = {"pipelines": (), "kimagenet": ("kimagenet.models", "kimagenet.optim")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site's folder."""
    output = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(output)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return output


class Targets(HTMLParser):
    """The targets of a page's links, pictures, scripts and styles."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("a", "link", "img", "script") and (target := values.get("href") or values.get("src")):
            self.found.append(target)


def pages(built: Path) -> Iterator[Path]:
    return (page for page in built.rglob("*.html") if page.name != "404.html")


def test_links_and_pictures_are_there(built: Path) -> None:
    for page in pages(built):
        for target in Targets(page).found:
            path = target.partition("#")[0].partition("?")[0]
            if path and not re.match(r"\w+:", path):
                assert (page.parent / path).exists(), f"{page.relative_to(built)}: {target}"


def test_nothing_is_loaded_from_other_servers(built: Path) -> None:
    for page in pages(built):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(script|img|link rel=.stylesheet.)[^>]*(src|href)=.https?:", text), page


def test_every_page_is_in_the_site(built: Path) -> None:
    names = {path.stem for path in (ROOT / "docs").glob("*.md")} | {
        page.removesuffix(".md") for page in site_pages.SOURCES
    }
    missing = {name for name in names - {"index"} if not (built / name / "index.html").is_file()}
    assert missing == set()
    assert (built / "index.html").is_file()


def test_reference_has_every_public_name(built: Path) -> None:
    for package in (pipelines, kimagenet):
        text = (built / "api" / package.__name__ / "index.html").read_text(encoding="utf-8")
        names = [f"{package.__name__}.{name}" for name in package.__all__ if name not in ("models", "optim")]
        names += [f"{inner}.{name}" for inner in INNER[package.__name__] for name in site_pages.names(inner)]
        assert [name for name in names if f'id="{name}"' not in text] == []


def test_names_are_read_as_python_does() -> None:
    assert site_pages.names("kimagenet.models") == kimagenet.models.__all__


@pytest.mark.parametrize(
    ("page", "markdown", "expected"),
    [
        ("index.md", "[a](docs/faq.md)", "[a](faq.md)"),
        ("index.md", "![a](docs/loaders.png)", "![a](loaders.png)"),
        ("faq.md", "[a](../bench/README.md#peers)", "[a](benchmarks.md#peers)"),
        ("faq.md", "[a](../README.md)", "[a](index.md)"),
        ("faq.md", "[a](speed.md), [b](#c)", "[a](speed.md), [b](#c)"),
        ("benchmarks.md", "[a](../docs/speed.md)", "[a](speed.md)"),
        ("benchmarks.md", "[a](results/no.md)", "[a](../bench/results/no.md)"),  # no such file: MkDocs warns
        ("results/note.md", "![a](../../docs/loaders.png)", "![a](../loaders.png)"),
        ("gpu.md", "[Dockerfile](../Dockerfile)", "Dockerfile"),
        ("api/pipelines.md", "[a](../faq.md)", "[a](../faq.md)"),
        ("faq.md", "[a](https://example.org/docs/faq.md)", "[a](https://example.org/docs/faq.md)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(page: str, markdown: str, expected: str) -> None:
    known = {"index.md", "faq.md", "speed.md", "benchmarks.md", "loaders.png"}
    assert site_pages.site_links(markdown, page, known) == expected
