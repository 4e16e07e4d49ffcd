"""The GPU graph, built and serialized without a GPU: which operators run and where. Its pixels, by CPU operators."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipelines import AugmentSpec, BatchSpec, EpochPlan, ShardSet, UserError
from pipelines.decoding import DecoderOptions
from pipelines.loader import LoaderOptions
from pipelines.loaders import dali
from pipelines.loaders.dali import native
from pipelines.loaders.dali.graph import build_graph
from pipelines.loaders.dali.plan_files import PlanFiles, write_plan
from pipelines.shards.records import _fields
from pipelines.stream import Segment
from tests.helpers import faults
from tests.test_loaders import SPECS

PROBLEM = dali.unavailable("cpu")
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=f"no DALI: {PROBLEM}")

FULL, STANDARD = AugmentSpec.train(), AugmentSpec.standard()
# Field numbers of DALI's serialized form (dali.proto): PipelineDef, OpDef, Argument, InputOutput, OutputDesc.
OPERATOR, OUTPUT, NAME, OUTPUTS, ARGUMENTS, DEVICE, DTYPE = 5, 7, 1, 3, 4, 2, 5
DALI_DTYPES = {"uint8": 0, "float16": 8, "float32": 9}


@dataclass(frozen=True)
class Graph:
    """(operator, device of its output) in running order, and the pipeline's outputs as (device, DALI dtype).

    `arguments`: the names of those that are the same for all samples, by operator; of several, those that all have.
    """

    operators: list[tuple[str, str]]
    outputs: list[tuple[str, int]]
    arguments: dict[str, set[str]]

    def named(self, *names: str) -> list[tuple[str, str]]:
        """The operators of these names."""
        return [operator for operator in self.operators if operator[0] in names]


def text(body) -> str:
    return bytes(body).decode()


def serialized(
    device: str,
    dtype: str = "float32",
    augment: AugmentSpec = FULL,
    native: bool = False,
    decoder: DecoderOptions | None = None,
    preallocate: tuple[int, int] = (0, 0),
) -> Graph:
    files = PlanFiles(["shard"], ["shard.idx"], "plan", "plan.idx", whole_images=device == "gpu")
    options = LoaderOptions(4, device=device, decoder=decoder or DecoderOptions())
    pipeline = build_graph(
        files, BatchSpec(64, 224, dtype), augment, 1, options, native=native, preallocate=preallocate
    )
    parts = list(_fields(memoryview(pipeline.serialize())))
    operators, arguments = [], {}
    for body in (body for number, body in parts if number == OPERATOR):
        fields = list(_fields(body))
        name = next(text(value) for number, value in fields if number == NAME)
        first_output = next(dict(_fields(value)) for number, value in fields if number == OUTPUTS)
        operators.append((name, text(first_output[DEVICE])))
        given = {text(dict(_fields(value))[NAME]) for number, value in fields if number == ARGUMENTS}
        arguments[name] = given & arguments.get(name, given)
    outputs = [dict(_fields(body)) for number, body in parts if number == OUTPUT]
    return Graph(operators, [(text(output[DEVICE]), int(output[DTYPE])) for output in outputs], arguments)


@pytest.mark.parametrize("dtype", DALI_DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_the_gpu_graph(dtype: str, spec: str) -> None:
    graph = serialized("gpu", dtype, SPECS[spec])
    decoders = [operator for operator in graph.operators if operator[0].startswith("decoders")]
    assert decoders == [("decoders__Image", "gpu")]  # "mixed": bytes in, pixels on the GPU; no region decoder
    assert graph.named("WarpAffine", "experimental__WarpPerspective") == [("WarpAffine", "gpu")]
    assert graph.named("CoordTransform") == [("CoordTransform", "gpu")]
    assert len(graph.named("readers___TFRecord")) == 2
    after_decoding = graph.operators[graph.operators.index(("decoders__Image", "gpu")) :]
    on_gpu = [name for name, device in after_decoding if device == "gpu"]
    crop = ["Slice"] * (not SPECS[spec].turns or SPECS[spec].policy is not None)
    clip, cast = ["_ArithmeticGenericOp"] * (dtype != "uint8"), ["Cast"] * (dtype != "float32")
    assert on_gpu == ["decoders__Image", *crop, "WarpAffine", "CoordTransform", *clip, *cast]
    assert graph.outputs[0] == ("gpu", DALI_DTYPES[dtype])
    assert {device for device, _ in graph.outputs} == {"gpu"}


def test_the_gpu_decoder_gets_its_settings() -> None:
    wanted = {"jpeg_fancy_upsampling", "hw_decoder_load", "preallocate_height_hint", "preallocate_width_hint"}
    assert wanted <= serialized("gpu").arguments["decoders__Image"]
    assert wanted & serialized("cpu").arguments["decoders__ImageSlice"] == {"jpeg_fancy_upsampling"}
    decoder = DecoderOptions(hw_decoder_load=0.9, fancy_upsampling=False)
    assert given("gpu", decoder, (700, 600)) == {
        "hw_decoder_load": 0.9,
        "jpeg_fancy_upsampling": False,
        "preallocate_height_hint": 700,
        "preallocate_width_hint": 600,
    }


def given(device: str, decoder: DecoderOptions, preallocate: tuple[int, int]) -> dict[str, object]:
    """What `build_graph` gives the decoder of whole images, of the settings that can be changed."""
    from nvidia.dali import fn

    seen: dict[str, object] = {}

    def image(encoded: object, **arguments: object) -> object:
        seen.update(arguments)
        return real(encoded, **arguments)

    real = fn.decoders.image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fn.decoders, "image", image)
        serialized(device, decoder=decoder, preallocate=preallocate)
    fixed = ("device", "output_type", "adjust_orientation")
    return {name: value for name, value in seen.items() if name not in fixed}


def test_memory_is_reserved_for_most_images_not_for_the_largest() -> None:
    sizes = np.array([[400, 500]] * 199 + [[9000, 8000]])
    assert DecoderOptions().preallocation(sizes) == (400, 500)
    assert DecoderOptions(preallocate_percentile=100).preallocation(sizes) == (9000, 8000)
    assert DecoderOptions(preallocate_percentile=0).preallocation(sizes) == (0, 0)
    assert DecoderOptions().preallocation(sizes[:0]) == (0, 0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hw_decoder_load", 1.1), ("hw_decoder_load", float("nan")), ("preallocate_percentile", -1), ("reader_queue", 0)],
)
def test_decoder_settings_are_checked(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^{setting} must be .*, not {value}$") as caught:
        DecoderOptions(**{setting: value})  # type: ignore[arg-type]
    assert caught.value.setting == setting


def test_a_graph_and_a_plan_that_do_not_fit_are_refused() -> None:
    boxes, whole = (PlanFiles(["a"], ["b"], "c", "d", whole_images=each) for each in (False, True))
    batch = BatchSpec(8, 48)
    with pytest.raises(ValueError, match="plan for whole images"):
        build_graph(boxes, batch, FULL, 1, LoaderOptions(1, device="gpu"))
    with pytest.raises(ValueError, match="plan for boxes"):
        build_graph(whole, batch, FULL, 1, LoaderOptions(1), native=True)


@pytest.mark.parametrize("dtype", DALI_DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_whole_images_give_the_pixels_of_regions(tiny_dataset: Path, spec: str, dtype: str, tmp_path: Path) -> None:
    """The graph of a GPU, by CPU operators, against the one that decodes regions; in grey levels of 0…255.

    Our own operator and the GPU's warp both compute in float32, so only rounding is left: of positions, and of uint8
    and float16 outputs. DALI's warp on the CPU gives whole grey levels, so it is off by up to 0.5 before the colours.
    """
    shards, augment, batch = ShardSet.open(tiny_dataset, "train"), SPECS[spec], BatchSpec(25, 48, dtype)
    plan = EpochPlan(shards, augment, batch.batch_size, batch.image_size)
    folders = [tmp_path / "boxes", tmp_path / "whole"]
    for folder in folders:
        folder.mkdir()
    boxes, whole = (
        write_plan(Segment.whole(plan), batch, folder, whole_images=folder.name == "whole") for folder in folders
    )
    exact = native.available()
    found = run(whole, batch, augment, plan.steps_per_epoch, native=False)
    wanted = run(boxes, batch, augment, plan.steps_per_epoch, native=exact)
    difference = np.abs(np.concatenate(list(found)) - np.concatenate(list(wanted)))
    difference *= 1 if dtype == "uint8" else 127.5
    assert difference.mean() < (0.02 if exact else 0.5)
    ties = 0.5 if dtype == "uint8" else 0.1  # halves are rounded up by one and to even by the other
    assert difference.mean(axis=(1, 2, 3)).max() < (ties if exact else 1.0)
    assert difference.max() < (1.01 if exact else 8)


def run(files: PlanFiles, batch: BatchSpec, augment: AugmentSpec, steps: int, native: bool) -> Iterator[np.ndarray]:
    pipeline = build_graph(files, batch, augment, 1, LoaderOptions(2), native=native, standalone=True)
    pipeline.build()
    for _ in range(steps):
        images = pipeline.run()[0]
        yield np.stack([np.asarray(images[i]) for i in range(batch.batch_size)]).astype(np.float64)


CORRUPT = """
import sys
from pathlib import Path
from pipelines import AugmentSpec, BatchSpec, EpochPlan, ShardSet
from pipelines.loader import LoaderOptions
from pipelines.loaders.dali.graph import build_graph
from pipelines.loaders.dali.plan_files import write_plan
from pipelines.stream import Segment
shards, augment, batch = ShardSet.open(Path(sys.argv[1]), "train"), AugmentSpec.train(), BatchSpec(8, 48)
plan = EpochPlan(shards, augment, 8, 48)
files = write_plan(Segment.whole(plan), batch, Path(sys.argv[2]), whole_images=True)
pipeline = build_graph(files, batch, augment, 1, LoaderOptions(2), standalone=True)
pipeline.build()
failed = 0
for _ in range(plan.steps_per_epoch):
    try:
        pipeline.run()
    except RuntimeError as error:
        assert "peek_image_shape" in str(error), error
        failed += 1
print("failed", failed)
"""


def test_a_corrupt_image_is_an_exception_of_the_operator_that_reads_heads(tiny_dataset: Path, tmp_path: Path) -> None:
    dataset, plan = faults.copy_dataset(tiny_dataset, tmp_path / "shards"), tmp_path / "plan"
    plan.mkdir()
    shards = ShardSet.open(dataset, "train")
    faults.corrupt(shards, EpochPlan(shards, FULL, 8, 48).records[[17, 33, 70]], "image head")
    command = [sys.executable, "-c", CORRUPT, str(dataset), str(plan)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip().splitlines()[-1:]) == (0, ["failed 3"]), done.stderr


def test_evaluation_has_weights_on_the_gpu() -> None:
    assert [device for device, _ in serialized("gpu", augment=AugmentSpec.evaluation()).outputs] == ["gpu"] * 3


def test_the_cpu_graph_differs_in_device_decoder_and_warp() -> None:
    gpu, cpu = serialized("gpu"), serialized("cpu")
    assert {device for _, device in cpu.operators} == {"cpu"}
    for graph, decoder in ((gpu, "decoders__Image"), (cpu, "decoders__ImageSlice")):
        names = [name for name, _ in graph.operators]
        # What the decoder is given depends on the image's head: heads are read before anything is decoded.
        between = names[names.index("PeekImageShape") : names.index(decoder)]
        assert "_ArithmeticGenericOp" in between
        assert graph is cpu or between[-1] == "Reshape"
    assert [device for device, _ in cpu.outputs] == ["cpu", "cpu"]
    assert [name for name, _ in cpu.named("CoordTransform")] == [name for name, _ in gpu.named("CoordTransform")]
    assert cpu.named("decoders__ImageSlice", "decoders__Image") == [("decoders__ImageSlice", "cpu")]
    assert cpu.named("experimental__WarpPerspective")
    assert not cpu.named("WarpAffine", "Slice")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_outside_is_black_where_images_turn_and_else_the_edge(device: str) -> None:
    warp = "WarpAffine" if device == "gpu" else "experimental__WarpPerspective"  # the first has no name for the edge
    assert "fill_value" in serialized(device).arguments[warp]
    for spec in (STANDARD, AugmentSpec.evaluation()):
        arguments = serialized(device, augment=spec).arguments[warp]
        assert "fill_value" not in arguments
        assert device == "gpu" or "border_mode" in arguments


@pytest.mark.skipif(PROBLEM is not None or not native.available(), reason="the CPU operator does not compile here")
def test_our_cpu_operator_replaces_warp_colour_and_clip() -> None:
    graph = serialized("cpu", native=True)
    after_decoding = graph.operators[graph.operators.index(("decoders__ImageSlice", "cpu")) :]
    assert after_decoding[1][0] == "KimagenetWarpColour"
    assert not graph.named("experimental__WarpPerspective", "WarpAffine", "CoordTransform")


def test_neither_shards_nor_plans_are_mapped() -> None:
    """A page that cannot be read would end the process, and DALI keeps a note of every file that it has mapped."""
    readers = serialized("cpu").arguments["readers___TFRecord"]
    assert "dont_use_mmap" in readers


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_nothing_in_the_graph_is_random(device: str) -> None:
    names = [name.lower() for name, _ in serialized(device).operators]
    assert not [name for name in names if "random" in name or "coin" in name or "normal" in name]
