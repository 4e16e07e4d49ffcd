"""The training augmentation of a recipe, as text: "full", or "full + rotation=30 + crop_area=0.35:1".

The text begins with a name, or with the import path of a function that returns an `AugmentSpec`. Changes follow.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kimagenet.import_path import is_import_path, load
from pipelines.augment import AugmentSpec
from pipelines.errors import UserError
from pipelines.operation import Operation, operations

NAMES = ("full", "standard", "none", "trivial", "rand:N,M")


def changeable() -> dict[str, Operation]:
    """The fields of `AugmentSpec` that a training may change by numbers, by name."""
    fixed = ("policy", "center_crop")
    return {name: operation for name, operation in operations(AugmentSpec).items() if name not in fixed}


def spec_of(text: str) -> AugmentSpec:
    """The augmentation that a text describes.

    Args:
        text: the `augment` of a recipe.

    Raises:
        UserError: the name is unknown, its function cannot be imported, or a change is wrong.
    """
    base, changes = _parse(text)
    if not is_import_path(base):
        spec = _named(base)
    elif not isinstance(spec := load(base, "augment")(), AugmentSpec):
        raise UserError(f"{base}: returned {type(spec).__name__}, not an AugmentSpec", setting="augment")
    return _changed(spec, changes)


def check(text: str) -> None:
    """Checks a text as far as that is possible without importing the user's function; raises `UserError`."""
    base, changes = _parse(text)
    _changed(AugmentSpec() if is_import_path(base) else _named(base), changes)


def with_changes(text: str, changes: Mapping[str, Any]) -> str:
    """The text with further changes; a change replaces an earlier one of the same field.

    Args:
        text: the `augment` of a recipe.
        changes: by name of the field: a number, or (low, high).
    """
    base, earlier = _parse(text)
    return " + ".join([base, *(f"{name}={_text_of(value)}" for name, value in {**earlier, **changes}.items())])


def _named(base: str) -> AugmentSpec:
    if base not in NAMES[:-1] and not re.fullmatch(r"rand:\d+,\d+", base, re.ASCII):
        what = f"augment must be one of {', '.join(NAMES)} or module:function, not {base!r}"
        raise UserError(what, setting="augment")
    try:
        return AugmentSpec.named(base)
    except UserError as error:
        raise UserError(f"augment: {base}: {error.what}", setting="augment") from None


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    base, *changes = (part.strip() for part in text.split("+"))
    return base, dict(map(_change, changes))


def _change(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    known = changeable()
    if name not in known:
        raise UserError(f"augment: {text!r} changes none of {', '.join(known)}", setting="augment")
    try:
        numbers = tuple(map(float, value.split(":")))
    except ValueError:
        numbers = ()
    if len(numbers) != (2 if isinstance(known[name].neutral, tuple) else 1):
        form = "LOW:HIGH" if isinstance(known[name].neutral, tuple) else "NUMBER"
        raise UserError(f"augment: {text!r} has not the form {name}={form}", setting="augment")
    return name, numbers if len(numbers) == 2 else numbers[0]


def _changed(spec: AugmentSpec, changes: dict[str, Any]) -> AugmentSpec:
    """The spec with its changes. An operation that is changed and was never applied is applied to every record."""
    known = changeable()
    chances = {chance: 1.0 for name in changes if (chance := known[name].chance) and getattr(spec, chance) == 0}
    return replace(spec, **{**chances, **changes})


def _text_of(value: Any) -> str:
    return ":".join(f"{number:g}" for number in value) if isinstance(value, tuple) else f"{value:g}"
