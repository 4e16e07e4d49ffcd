"""The arithmetic of the CPU operator under AddressSanitizer and UndefinedBehaviorSanitizer, compared with NumPy."""

import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.augment import AugmentSpec
from pipelines.loader import BatchSpec
from pipelines.loaders.dali import native
from pipelines.uniform import RecordUniform

PROGRAM = Path(__file__).parent / "programs" / "warp_colour.cc"
SANITIZERS = ("-g", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
WHOLE = {"crop_aspect": (0.01, 100.0)}  # the crop is all of the image
EXAMPLES = int(os.environ.get("WARP_EXAMPLES", "200"))


@dataclass(frozen=True, eq=False)
class Case:
    """An image uint8 [H, W, 3] and how it is warped. `plan` has 18 numbers."""

    image: np.ndarray
    plan: np.ndarray
    size: int
    repeat_edges: bool
    dtype: str

    def to_bytes(self) -> bytes:
        """As tests/programs/warp_colour.cc reads it."""
        head = np.array([self.size, *self.image.shape[:2], self.repeat_edges, np.dtype(self.dtype).itemsize], np.int32)
        return head.tobytes() + self.plan.astype(np.float32).tobytes() + self.image.tobytes()


def run(program: Path, cases: list[Case]) -> list[np.ndarray]:
    """The outputs [size, size, 3]. Fails with the sanitizer's report."""
    options = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    data = b"".join(case.to_bytes() for case in cases)
    done = subprocess.run([program], input=data, capture_output=True, env=options, check=False)
    assert done.returncode == 0, done.stderr.decode()
    outputs, start = [], 0
    for case in cases:
        count = case.size * case.size * 3
        outputs.append(np.frombuffer(done.stdout, case.dtype, count, start).reshape(case.size, case.size, 3))
        start += outputs[-1].nbytes
    return outputs


def compile_program(folder: Path, header: Path) -> Path:
    """The program with the arithmetic of a header. Skips the test if it cannot be compiled with sanitizers here."""
    try:
        compiler = native._compiler()
    except native._NotCompiled as error:
        pytest.skip(str(error))
    output = folder / "warp_colour"
    check = folder / "check.cc"
    check.write_text("int main() {}")
    if subprocess.run([*compiler, *SANITIZERS, str(check), "-o", str(output)], capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers")
    command = [*compiler, *native.FLAGS, *SANITIZERS, f"-I{header.parent}", str(PROGRAM), "-o", str(output)]
    subprocess.run(command, check=True)
    return output


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    header = Path(native.__file__).with_name("warp_colour.h")
    return compile_program(tmp_path_factory.mktemp("operator"), header)


def reference(case: Case) -> np.ndarray:
    """float64 [size, size, 3], not clipped: what the comment at the top of warp_colour.cc says."""
    plan, image, size = case.plan.astype(np.float32).astype(np.float64), case.image.astype(np.float64), case.size
    height, width = image.shape[:2]
    columns, rows = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    x, y = np.einsum("ij,jrc->irc", plan[:6].reshape(2, 3), np.stack([columns, rows, np.ones_like(rows)]))
    framed = np.pad(image, ((1, 2), (1, 2), (0, 0)), mode="edge" if case.repeat_edges else "constant")
    x, y = np.clip(x + 0.5, 0, width + 1), np.clip(y + 0.5, 0, height + 1)
    column, row = x.astype(int), y.astype(int)
    right, down = (x - column)[..., None], (y - row)[..., None]
    upper = framed[row, column] * (1 - right) + framed[row, column + 1] * right
    lower = framed[row + 1, column] * (1 - right) + framed[row + 1, column + 1] * right
    colour = plan[6:18].reshape(3, 4)
    return (upper * (1 - down) + lower * down) @ colour[:, :3].T + colour[:, 3]


def drawn(spec: AugmentSpec, height: int, width: int, size: int, record: int) -> Iterator[Case]:
    """The planned box of an image, as the loader decodes it, and its plan, for two dtypes."""
    image = np.random.default_rng(record).integers(0, 256, (height, width, 3)).astype(np.uint8)
    uniform = RecordUniform(0, 0, np.array([record]))
    draws = spec.draw(uniform, np.array([height]), np.array([width]), size)
    top, left, box_height, box_width = draws.box[0]
    draws.affine[0, :, 2] -= left, top
    decoded = np.ascontiguousarray(image[top : top + box_height, left : left + box_width])
    for dtype in ("float32", "uint8"):
        colour = BatchSpec(1, size, dtype).to_output_range(draws.colour)
        yield Case(decoded, np.concatenate([draws.affine[0].ravel(), colour[0].ravel()]), size, not spec.turns, dtype)


def check(program: Path, cases: Iterable[Case]) -> None:
    """Differences are at most 0.02 grey levels before rounding."""
    cases = list(cases)
    for case, output in zip(cases, run(program, cases), strict=True):
        wanted = reference(case)
        if case.dtype == "uint8":
            difference = np.abs(output - np.clip(wanted, 0, 255)).max() - 0.5
        else:
            difference = 127.5 * np.abs(output - np.clip(wanted, -1, 1)).max()
        assert difference < 0.02, (case.image.shape, case)


SPECS = {
    "whole": AugmentSpec(**WHOLE),
    "whole, flipped": AugmentSpec(**WHOLE, flip=1.0),
    "whole, black outside": AugmentSpec(**WHOLE, rotation=1.0, rotation_probability=1e-9),
    "whole, flipped, black outside": AugmentSpec(**WHOLE, flip=1.0, rotation=1.0, rotation_probability=1e-9),
    "full": AugmentSpec.train(),
    "standard": AugmentSpec.standard(),
    "upside down": AugmentSpec(**WHOLE, rotation=180.0, rotation_probability=1.0),
    "evaluation": AugmentSpec.evaluation(),
}


@pytest.mark.parametrize("spec", SPECS)
def test_every_small_size(program: Path, spec: str) -> None:
    sizes = product(range(1, 6), range(1, 6), (1, 2, 3, 4, 5, 8, 33), range(2))
    check(program, chain.from_iterable(drawn(SPECS[spec], *size) for size in sizes))


@pytest.mark.parametrize("spec", SPECS)
def test_thin_and_ordinary_images(program: Path, spec: str) -> None:
    sides = [(1, 3000), (3000, 1), (2, 1999), (1999, 2), (3, 500), (500, 3), (90, 70)]
    cases = product(sides, (1, 32, 129), range(3))
    check(program, chain.from_iterable(drawn(SPECS[spec], *side, size, record) for side, size, record in cases))


def ordered(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.lists(st.floats(low, high), min_size=2, max_size=2).map(sorted).map(tuple)


SIDES = st.integers(1, 6) | st.integers(1, 90)
HYPOTHESIS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 200,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@HYPOTHESIS
@given(
    spec=st.builds(
        AugmentSpec,
        crop_area=ordered(0.001, 1),
        crop_aspect=ordered(0.01, 100),
        flip=st.sampled_from([0.0, 0.5, 1.0]),
        rotation=st.sampled_from([0.0, 90.0, 180.0]) | st.floats(0, 180),
        rotation_probability=st.sampled_from([0.0, 0.5, 1.0]),
        brightness=st.floats(0, 1),
        contrast=ordered(0, 2),
        saturation=ordered(0, 2),
        hue=st.floats(0, 180),
    )
    | st.builds(AugmentSpec, center_crop=st.floats(0.01, 1)),
    height=SIDES,
    width=SIDES,
    size=st.integers(1, 9) | st.integers(1, 130),
    record=st.integers(0, 10**6),
)
def test_every_matrix_that_a_spec_can_draw(
    program: Path, spec: AugmentSpec, height: int, width: int, size: int, record: int
) -> None:
    check(program, drawn(spec, height, width, size, record))


NUMBERS = st.sampled_from([0.0, 1e-30, -1e-30, 1e-6, 0.5, 1.0, -1.0, 2.0]) | st.floats(-1e6, 1e6, width=32)


@HYPOTHESIS
@given(
    affine=st.lists(NUMBERS, min_size=6, max_size=6),
    height=SIDES,
    width=SIDES,
    size=st.integers(1, 40),
    repeat_edges=st.booleans(),
)
def test_no_finite_matrix_leads_outside(
    program: Path, affine: list[float], height: int, width: int, size: int, repeat_edges: bool
) -> None:
    """Positions have large rounding errors here, so only the range of the values is checked."""
    image = np.full((height, width, 3), 200, np.uint8)
    plan = np.array([*affine, *np.eye(3, 4).ravel()])
    (output,) = run(program, [Case(image, plan, size, repeat_edges, "uint8")])
    assert output.max() <= 200
    assert not repeat_edges or output.min() == 200


def test_the_sanitizers_are_on(tmp_path: Path) -> None:
    """They report a header that reads one byte more than it may."""
    header = Path(native.__file__).with_name("warp_colour.h").read_text()
    broken = header.replace("source.width - 2 - rim", "source.width - 1 - rim").replace("source.width - 3", "1e6")
    (tmp_path / "warp_colour.h").write_text(broken)
    program = compile_program(tmp_path, tmp_path / "warp_colour.h")
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        check(program, drawn(SPECS["whole"], 3, 20, 64, 0))
