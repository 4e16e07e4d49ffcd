"""An augmentation that a field declares is checked, and known to the loaders, without further code."""

from dataclasses import dataclass

import pytest

from pipelines import AugmentSpec, UserError
from pipelines.operation import Limits, Part, declare

INF = float("inf")


@dataclass(frozen=True)
class Extended(AugmentSpec):
    """Two more fields."""

    tint: float = declare(0.0, Limits(0, 0.5), Part.COLOUR, columns=[100])
    shear: float = declare(0.0, Limits(0, 45, unit="degrees"), Part.WARP, columns=[101])


def test_a_new_field_is_checked_and_counts() -> None:
    assert not Extended().is_random
    assert (Extended(tint=0.1).jitters, Extended(tint=0.1).turns, Extended(tint=0.1).is_random) == (True, False, True)
    assert (Extended(shear=9.0).jitters, Extended(shear=9.0).turns, Extended(shear=9.0).is_random) == (
        False,
        True,
        True,
    )
    with pytest.raises(UserError, match=r"^augmentation: tint must be in \[0, 0.5\], not 0.6$"):
        Extended(tint=0.6)
    with pytest.raises(UserError, match=r"^augmentation: shear must be in \[0, 45\] degrees, not -1.0$"):
        Extended(shear=-1.0)
    with pytest.raises(UserError, match="center_crop cannot be combined"):
        Extended(shear=9.0, center_crop=1.0)


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "text"),
    [
        (Limits(0, 1), (0, 0.5, 1), (-1e-9, 1.1, float("nan")), "[0, 1]"),
        (Limits(0, 1, includes_low=False), (1e-9, 1), (0, 1.1), "(0, 1]"),
        (Limits(0, INF), (0, 1e300), (-1, INF), "[0, inf)"),
        (Limits(-180, 180, unit="degrees"), (-180, 180), (-181, 181), "[-180, 180] degrees"),
    ],
)
def test_limits(limits: Limits, inside: tuple[float, ...], outside: tuple[float, ...], text: str) -> None:
    assert all(value in limits for value in inside)
    assert not any(value in limits for value in outside)
    assert str(limits) == text
