"""An augmentation that a field declares is checked, and known to the loaders, without further code."""

from dataclasses import dataclass

import pytest

from pipelines import AugmentSpec, UserError
from pipelines.operation import Part, declare
from pipelines.ranges import Range

INF = float("inf")


@dataclass(frozen=True)
class Extended(AugmentSpec):
    """Two more fields."""

    tint: float = declare(0.0, Range(at_least=0, at_most=0.5), Part.COLOUR, columns=[100])
    shear: float = declare(0.0, Range(at_least=0, at_most=45, unit="degrees"), Part.WARP, columns=[101])


def test_a_new_field_is_checked_and_counts() -> None:
    assert not Extended().is_random
    assert (Extended(tint=0.1).jitters, Extended(tint=0.1).turns, Extended(tint=0.1).is_random) == (True, False, True)
    assert (Extended(shear=9.0).jitters, Extended(shear=9.0).turns, Extended(shear=9.0).is_random) == (
        False,
        True,
        True,
    )
    with pytest.raises(UserError, match=r"^augmentation: tint must be at most 0\.5, not 0\.6$"):
        Extended(tint=0.6)
    with pytest.raises(UserError, match=r"^augmentation: shear must be at least 0 degrees, not -1\.0$"):
        Extended(shear=-1.0)
    with pytest.raises(UserError, match="center_crop cannot be combined"):
        Extended(shear=9.0, center_crop=1.0)


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "problem"),
    [
        (Range(at_least=0, at_most=1), (0, 0.5, 1), (1.1, 2), "must be at most 1"),
        (Range(above=0, at_most=1), (1e-9, 1), (0, -1), "must be greater than 0"),
        (Range(at_least=0), (0, 1e300), (-1e-9, -1), "must be at least 0"),
        (Range(at_least=-180, at_most=180, unit="degrees"), (-180, 180), (-181,), "must be at least -180 degrees"),
        (Range(below=1), (-1e300, 0.999), (1, 2), "must be less than 1"),
        (Range(), (-1e300, 1e300), (INF, -INF, float("nan")), "must be a finite number"),
    ],
)
def test_ranges(limits: Range, inside: tuple[float, ...], outside: tuple[float, ...], problem: str) -> None:
    assert {limits.problem(value) for value in inside} == {""}
    assert {limits.problem(value) for value in outside} == {problem}
