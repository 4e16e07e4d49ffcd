"""Flags that have no effect in a training, because another setting does not use them. They are named, not refused."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kimagenet.import_path import is_import_path
from kimagenet.recipe import WITH_EPSILON, Recipe
from kimagenet.train_flags import make_parser
from kimagenet.train_settings import Settings


@dataclass(frozen=True)
class Need:
    """What flags need.

    Attributes:
        flags: their names as in the recipe or in the parsed flags.
        text: what they need, for people.
        is_met: whether a training has it.
    """

    flags: tuple[str, ...]
    text: str
    is_met: Callable[[Settings], bool]


def _has_optimizer(*names: str) -> Callable[[Settings], bool]:
    """Whether the optimizer is one of these, or the user's own, which may read every field of the recipe."""
    return lambda settings: settings.recipe.optimizer in names or is_import_path(settings.recipe.optimizer)


def _of_recipe(is_met: Callable[[Recipe], bool]) -> Callable[[Settings], bool]:
    return lambda settings: is_met(settings.recipe)


def _may_be_dali(settings: Settings) -> bool:
    return settings.loader.name != "tfdata"


def _may_decode_on_gpu(settings: Settings) -> bool:
    return _may_be_dali(settings) and settings.loader.device != "cpu"


NEEDS = (
    Need(("step_epochs", "step_factor"), "--lr-sched=step", _of_recipe(lambda recipe: recipe.lr_sched == "step")),
    Need(("final_lr",), "a --lr-sched other than constant", _of_recipe(lambda recipe: recipe.lr_sched != "constant")),
    Need(
        ("final_lr",),
        "more than one epoch (--epochs)",
        _of_recipe(lambda recipe: recipe.lr_sched not in ("linear", "exp") or recipe.epochs > 1),
    ),
    Need(("momentum", "nesterov"), "--optimizer=sgd", _has_optimizer("sgd")),
    Need(
        ("nesterov",),
        "a --momentum above 0",
        _of_recipe(lambda recipe: not recipe.nesterov or recipe.momentum > 0),
    ),
    Need(("epsilon",), f"an --optimizer that has one ({', '.join(WITH_EPSILON)})", _has_optimizer(*WITH_EPSILON)),
    Need(("sync_period", "slow_step_size"), "--use-lookahead", _of_recipe(lambda recipe: recipe.use_lookahead)),
    Need(("max_corrupt",), "--on-corrupt=skip", lambda settings: settings.loader.on_corrupt == "skip"),
    Need(("data_device", "strict_loader", "reader_queue"), "--loader=dali", _may_be_dali),
    Need(
        ("hw_decoder_load", "fancy_upsampling", "preallocate_percentile"),
        "--loader=dali and images that a GPU decodes (--data-device)",
        _may_decode_on_gpu,
    ),
)


def lines(flags: argparse.Namespace, settings: Settings) -> Iterator[str]:
    """A line for each flag of the command line that has no effect.

    Args:
        flags: what `train_flags.make_parser()` parsed.
        settings: what was made of them.
    """
    parser, named = make_parser(), set()
    for need in NEEDS:
        for name in need.flags:
            default = parser.get_default(name)  # fields of the recipe are in `flags` only if they were given
            given = vars(flags).get(name, default)
            if given != default and name not in named and not need.is_met(settings):
                named.add(name)
                yield f"note    {no_effect(f'no_{name}' if given is False else name, need.text)}"


def no_effect(name: str, need: str) -> str:
    """The line about a flag, by its Python name, without what it needs."""
    return f"--{name.replace('_', '-')} has no effect: it needs {need}"
