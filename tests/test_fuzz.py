"""Bytes that somebody else has written: refused with what the reader promises, at once, whatever they are.

A short run of what `python -m tests.helpers.fuzz` does at length, and the same readers under Hypothesis.
FUZZ_EXAMPLES=100000 in the environment makes the latter long.
"""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kimagenet.recipe import Recipe
from pipelines import ShardSet, UserError
from pipelines.shards.shard_set import write_sizes
from tests.helpers import faults, fuzz

TARGETS = fuzz.targets()
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
MUTATIONS = 300


def _npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _state(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _absurd_array() -> bytes:
    """A head that claims 8 terabytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }"
        archive.writestr("state.npy", b"\x93NUMPY\x01\x00" + (len(head) + 1).to_bytes(2, "little") + head + b"\n")
    return stream.getvalue()


def _recipe(**changes: object) -> bytes:
    return json.dumps({"version": 1, **changes}).encode()


# What raised something else, took the memory, or made several lines of a message, when it was found.
FINDINGS: list[tuple[str, bytes]] = [
    ("recipe.json", b"[" * 100_000),
    ("recipe.json", b'{"version": 1, "initial_lr": 1' + b"0" * 400 + b"}"),
    ("recipe.json", b'{"version": 1, "initial_lr": Infinity}'),
    ("recipe.json", _recipe(**{"a\nb\x1b[2J": 1})),
    ("recipe.json", _recipe(model=["x" * 100_000])),
    ("run.json", b"[" * 100_000),
    ("run.json", b'{"version": ' + b"9" * 5000 + b"}"),
    ("checkpoint", b""),
    ("checkpoint", b"no archive"),
    ("checkpoint", _npz(a=np.zeros(3))),
    ("checkpoint", _npz(state=_state("[1, 2]"))),
    ("checkpoint", _npz(state=_state("7"))),
    ("checkpoint", _npz(state=_state("[" * 100_000))),
    ("checkpoint", _npz(state=_state('{"version": 1}'), array_00000=np.array([print], object))),
    ("checkpoint", _npz(state=_state('{"version": 1}'))[:-30]),
    ("checkpoint", _absurd_array()),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("number", range(len(FINDINGS)))
def test_what_was_found_stays_mended(folder: Path, number: int) -> None:
    name, data = FINDINGS[number]
    assert fuzz.problem(TARGETS[name], data, folder) == ""
    with pytest.raises(TARGETS[name].promised):  # and it is refused
        TARGETS[name].read(data, folder)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_good_files(folder: Path, name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].read(seed, folder)
    assert fuzz.fuzz(TARGETS[name], MUTATIONS, 0, folder) == {}


def test_a_reader_that_fails_is_found(folder: Path) -> None:
    def read(data: bytes, _: Path) -> None:
        if data[:1] == b"\x00":
            raise KeyError("zero")

    found = fuzz.fuzz(fuzz.Target(read, (ValueError,), (b"abc",)), 2000, 0, folder)
    assert list(found) == ["KeyError: 'zero'"]


@st.composite
def edited(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A good file of which pieces are replaced; Hypothesis makes the cause of a finding small."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        data[start : start + length] = draw(st.binary(max_size=40) | st.sampled_from(fuzz.TOKENS))
    return bytes(data)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = ["version", "label_base", "classes", "splits", "build", "dataset_dir", *vars(Recipe()), "other"]
documents = st.dictionaries(st.sampled_from(fields), values, max_size=6).map(
    lambda document: json.dumps({"version": 1, **document}).encode()
)


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_hypothesis_thinks_of(folder: Path, name: str) -> None:
    inputs = st.binary(max_size=200) | edited(TARGETS[name].seeds)
    if name.endswith(".json"):
        inputs |= documents

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize="FUZZ_EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def check(data: bytes) -> None:
        assert fuzz.problem(TARGETS[name], data, folder) == ""

    check()


def test_images_of_absurd_size_are_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    """A decoder would take 12 GB for one: they are told by the sizes, before anything is decoded."""
    dataset = faults.copy_dataset(tiny_dataset, tmp_path / "shards")
    sizes = np.load(dataset / "train-sizes.npy")
    sizes[7] = 65_500, 65_500
    (dataset / "train-sizes.npy").unlink()
    write_sizes(dataset / "train-sizes.npy", sizes)
    with pytest.raises(UserError, match="record 7 of train has an image of 65,500 × 65,500 pixels"):
        ShardSet.open(dataset, "train")
