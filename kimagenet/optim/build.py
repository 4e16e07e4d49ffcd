"""The optimizer of a recipe: one of Keras' own by name, with the wrappers that the recipe asks for."""

from typing import Any

import keras

from kimagenet.import_path import load
from kimagenet.optim.clip import ClipGlobalNorm
from kimagenet.optim.iter_size import IterSize
from kimagenet.optim.lookahead import Lookahead
from kimagenet.recipe import WITH_EPSILON, Recipe
from pipelines.errors import UserError

CLASSES = {
    "sgd": keras.optimizers.SGD,
    "adam": keras.optimizers.Adam,
    "rmsprop": keras.optimizers.RMSprop,
    "adamw": keras.optimizers.AdamW,
    "lamb": keras.optimizers.Lamb,
    "lion": keras.optimizers.Lion,
    "nadam": keras.optimizers.Nadam,
    "adamax": keras.optimizers.Adamax,
    "adagrad": keras.optimizers.Adagrad,
    "adadelta": keras.optimizers.Adadelta,
    "adafactor": keras.optimizers.Adafactor,
}

# Biases, and scale and offset of normalization, have no decay. Keras compares these with names and full paths.
NOT_DECAYED = [r"(^|/)(bias|gamma|beta)(:0)?$"]


def build(recipe: Recipe) -> keras.optimizers.Optimizer:
    """Builds IterSize(Lookahead(ClipGlobalNorm(x))), with only the wrappers that the recipe asks for.

    IterSize is outside, so everything inside gets one mean gradient for each update. Build the optimizer of a run from
    its recipe, not from a .keras file: Keras does not save which weights have no decay.

    Args:
        recipe: its fields of the group "optimizer" and `iter_size`.

    Returns:
        The optimizer, with the learning rate `initial_lr`. To follow a schedule, assign `learning_rate`. For loss
        scaling, put a `LossScaleOptimizer` around it.

    Raises:
        UserError: `recipe.optimizer` is an import path that does not lead to an optimizer.
    """
    optimizer = _inner(recipe)
    if recipe.clip_global_norm:
        optimizer = ClipGlobalNorm(optimizer, recipe.clip_global_norm)
    if recipe.use_lookahead:
        optimizer = Lookahead(optimizer, recipe.sync_period, recipe.slow_step_size)
    if recipe.iter_size > 1:
        optimizer = IterSize(optimizer, recipe.iter_size)
    return optimizer


def _inner(recipe: Recipe) -> keras.optimizers.Optimizer:
    is_ours = recipe.optimizer in CLASSES
    optimizer = CLASSES[recipe.optimizer](**_options(recipe)) if is_ours else _of_user(recipe)
    optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    return optimizer


def _of_user(recipe: Recipe) -> keras.optimizers.Optimizer:
    optimizer = load(recipe.optimizer, "optimizer")(recipe)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        what = f"{recipe.optimizer}: returned {type(optimizer).__name__}, not a Keras optimizer"
        raise UserError(what, setting="optimizer")
    return optimizer


def _options(recipe: Recipe) -> dict[str, Any]:
    options: dict[str, Any] = {"learning_rate": recipe.initial_lr}
    if recipe.optimizer == "sgd":
        options |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    if recipe.optimizer == "rmsprop":
        options["rho"] = 0.9
    if recipe.optimizer in WITH_EPSILON:
        options["epsilon"] = recipe.epsilon
    # AdamW's default is a decay greater than 0, and it does not accept None.
    if recipe.decoupled_weight_decay or recipe.optimizer == "adamw":
        options["weight_decay"] = recipe.decoupled_weight_decay
    if recipe.ema:
        options |= {"use_ema": True, "ema_momentum": recipe.ema}
    return options
