"""Tables of the recipes (without Keras) and of the models with their cost (builds each model)."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from kimagenet import models
from kimagenet.recipe import Recipe

RECIPE_COLUMNS = ("recipe", "px", "images/update", "epochs", "optimizer", "rate", "extras", "top-1", "reported by")
MODEL_COLUMNS = ("model", "parameters", "multiply-adds", "px", "recipe", "original top-1", "published top-1")
LAYER_COLUMNS = ("layer", "kind", "kernel", "stride", "output", "parameters")


class ListRecipes(argparse.Action):
    """A flag that prints the table of recipes and exits, like --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        print(recipes_table())
        parser.exit()


def recipes_table() -> str:
    """All recipes, one on each line. Imports no Keras."""
    reported = models.reported()
    return table(
        RECIPE_COLUMNS, (_recipe_row(name, recipe, reported[name]) for name, recipe in models.recipes().items())
    )


def models_table() -> str:
    """All models at 1000 classes, one on each line. Builds all models, which takes some seconds."""
    return table(MODEL_COLUMNS, map(_model_row, models.names()))


def layers_table(name: str) -> str:
    """The convolutions, pools, concatenations and dense layers of a model, as in the tables of papers.

    Args:
        name: of the model; it is built with the image size of its recipe.
    """
    from keras import layers

    model = models.build(name, image_size=models.recipes()[name].image_size)
    shown = (
        layers.Conv2D,
        layers.DepthwiseConv2D,
        layers.MaxPooling2D,
        layers.AveragePooling2D,
        layers.GlobalAveragePooling2D,
        layers.Concatenate,
        layers.Dense,
    )
    return table(LAYER_COLUMNS, (_layer_row(layer) for layer in model.layers if isinstance(layer, shown)))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    cells = (("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))) for line in lines)
    return "\n".join(line.rstrip() for line in cells)


def _recipe_row(name: str, recipe: Recipe, reported: models.Reported) -> tuple[str, ...]:
    batch = f"{recipe.batch_size}×{recipe.iter_size}" if recipe.iter_size > 1 else f"{recipe.batch_size}"
    rate = f"{recipe.lr_sched} {recipe.initial_lr:g}→{recipe.final_lr:g}"
    extras = ("label_smoothing", "mixup", "cutmix", "erase", "ema")
    shown = " ".join(
        [
            *(f"{extra}={getattr(recipe, extra):g}" for extra in extras if getattr(recipe, extra)),
            *([f"augment={recipe.augment}"] if recipe.augment not in ("full", "standard") else []),
            *([f"repeats={recipe.repeats}"] if recipe.repeats > 1 else []),
        ]
    )
    return (
        name,
        f"{recipe.image_size}",
        batch,
        f"{recipe.epochs}",
        recipe.optimizer,
        rate,
        shown or "–",
        _percent(reported),
        reported.source,
    )


def _model_row(name: str) -> tuple[str, ...]:
    recipe, reported = models.recipes()[name], models.reported()
    model = models.build(name, image_size=recipe.image_size)
    modern = f"{name}_modern"
    return (
        name,
        f"{model.count_params():,}",
        f"{models.multiply_adds(model) / 1e9:.3f} G",
        f"{recipe.image_size}",
        name + (f", {modern}" if modern in reported else ""),
        _percent(reported[name]),
        _percent(reported[modern]) if modern in reported else "–",
    )


def _layer_row(layer: Any) -> tuple[str, ...]:
    kernel = getattr(layer, "kernel_size", getattr(layer, "pool_size", None))
    return (
        layer.name,
        type(layer).__name__,
        "×".join(map(str, kernel)) if kernel else "–",
        f"{layer.strides[0]}" if kernel else "–",
        "×".join(map(str, layer.output.shape[1:])),
        f"{layer.count_params():,}",
    )


def _percent(reported: models.Reported) -> str:
    return "–" if reported.top1 is None else f"{reported.top1:.2%}"
