"""The GPU graph, built and serialized without a GPU: which operators run, where, and what comes out."""

from dataclasses import dataclass

import pytest

from pipelines import AugmentSpec, BatchSpec
from pipelines.loaders import dali
from pipelines.loaders.dali import native
from pipelines.loaders.dali.graph import build_graph
from pipelines.loaders.dali.plan_files import PlanFiles
from pipelines.shards.records import _fields

PROBLEM = dali.unavailable("cpu")
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=f"no DALI: {PROBLEM}")

FILES = PlanFiles(["shard"], ["shard.idx"], "plan", "plan.idx")
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
    device: str, dtype: str = "float32", augment: AugmentSpec = FULL, native: bool = False, files=FILES
) -> Graph:
    batch = BatchSpec(64, 224, dtype)
    pipeline = build_graph(files, batch, augment, 1, device=device, workers=4, native=native)
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
def test_the_gpu_graph(dtype: str) -> None:
    graph = serialized("gpu", dtype)
    assert graph.named("decoders__ImageSlice") == [
        ("decoders__ImageSlice", "gpu")
    ]  # mixed: bytes in, pixels on the GPU
    assert graph.named("WarpAffine", "experimental__WarpPerspective") == [("WarpAffine", "gpu")]
    assert graph.named("CoordTransform") == [("CoordTransform", "gpu")]
    assert len(graph.named("readers___TFRecord")) == 2
    after_decoding = graph.operators[graph.operators.index(("decoders__ImageSlice", "gpu")) :]
    on_gpu = [name for name, device in after_decoding if device == "gpu"]
    clip, cast = ["_ArithmeticGenericOp"] * (dtype != "uint8"), ["Cast"] * (dtype == "float16")
    assert on_gpu == ["decoders__ImageSlice", "WarpAffine", "CoordTransform", *clip, *cast]
    assert graph.outputs[0] == ("gpu", DALI_DTYPES[dtype])
    assert [device for device, _ in graph.outputs] == ["gpu", "gpu"]


def test_evaluation_has_weights_on_the_gpu() -> None:
    assert [device for device, _ in serialized("gpu", augment=AugmentSpec.evaluation()).outputs] == ["gpu"] * 3


def test_the_cpu_graph_is_the_same_but_for_device_and_warp() -> None:
    gpu, cpu = serialized("gpu"), serialized("cpu")
    assert {device for _, device in cpu.operators} == {"cpu"}
    for names in ([name for name, _ in graph.operators] for graph in (gpu, cpu)):
        # The decoder's corner is the lesser of the plan's and the image's: heads are read before anything is decoded.
        peek = names.index("PeekImageShape")
        assert "_ArithmeticGenericOp" in names[peek : names.index("decoders__ImageSlice")]
    assert [device for device, _ in cpu.outputs] == ["cpu", "cpu"]
    pixels = ("decoders__ImageSlice", "CoordTransform")
    assert [name for name, _ in cpu.named(*pixels)] == [name for name, _ in gpu.named(*pixels)]
    assert cpu.named("experimental__WarpPerspective")
    assert not cpu.named("WarpAffine")


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
    """A page that cannot be read would end the process, and DALI keeps a note of every file that was ever mapped."""
    readers = serialized("cpu").arguments["readers___TFRecord"]
    assert "dont_use_mmap" in readers


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_nothing_in_the_graph_is_random(device: str) -> None:
    names = [name.lower() for name, _ in serialized(device).operators]
    assert not [name for name in names if "random" in name or "coin" in name or "normal" in name]
