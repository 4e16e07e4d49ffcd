"""The recipe of a run for TensorBoard: in the table HPARAMS, where runs are compared, and as text."""

import dataclasses

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb

from kimagenet.recipe import Recipe


def recipe_values(recipe: Recipe, run: str) -> list[Summary.Value]:
    """What describes a run, to be written once.

    Args:
        recipe: the recipe of the run.
        run: the name of the run.

    Returns:
        The values of HPARAMS, and recipe.json as Markdown.
    """
    values = hparams_pb(dataclasses.asdict(recipe), trial_id=run).value
    return [*values, *text_pb("recipe", f"```json\n{recipe.to_json()}```").value]
