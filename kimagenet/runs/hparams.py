"""The recipe of a run for TensorBoard: in the table HPARAMS, where runs are compared, and as text."""

import dataclasses

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import summary_v2

from kimagenet.recipe import Recipe


def recipe_values(recipe: Recipe, run: str) -> list[Summary.Value]:
    """What describes a run, to be written once.

    Args:
        recipe: the recipe of the run.
        run: the name of the run.

    Returns:
        The values of HPARAMS (numbers, booleans and texts; other fields as text), and recipe.json as Markdown.
    """
    fields = {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in dataclasses.asdict(recipe).items()
    }
    return [*summary_v2.hparams_pb(fields, trial_id=run).value, _text("recipe", f"```json\n{recipe.to_json()}```")]


def _text(tag: str, markdown: str) -> Summary.Value:
    """The summary of a text, in the form that TensorBoard's text plugin reads."""
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[markdown.encode()])
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
