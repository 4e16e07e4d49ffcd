"""Policies: amounts are torchvision's, draws are distributed as published, and matrices and tones share the work."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from pipelines import AugmentSpec, UserError
from pipelines.policy import COLOURS, COLUMNS, GEOMETRY, LINEAR, OPERATIONS, TONES, Operations, Policy
from pipelines.uniform import RecordUniform
from tests.helpers import oracle

N, SIZE = 60_000, 224


def drawn(policy: Policy, count: int = N, size: int = SIZE) -> Operations:
    return policy.draw(RecordUniform(3, 5, np.arange(count)), size)


def operations(*steps: tuple[str, float], size: int = SIZE) -> Operations:
    """The operations of one image."""
    numbers = [[OPERATIONS.index(name) for name, _ in steps]]
    return Operations(np.array(numbers), np.array([[amount for _, amount in steps]], float), size)


def test_the_lists_are_the_published_one() -> None:
    assert (COLUMNS.start, COLUMNS.stop) == (oracle.FIRST_OPERATION, oracle.COLUMNS)
    assert OPERATIONS == oracle.OPERATIONS
    assert len(OPERATIONS) == 14
    assert TONES[1:] == COLOURS


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_amounts_are_torchvisions(name: str, wide: bool) -> None:
    for magnitude in range(31):
        amounts = drawn(Policy(1, magnitude, wide, (name,)), 64).amounts
        expected = {oracle.amount_of(name, magnitude, sign, SIZE, wide=wide) for sign in (-1, 1)}
        np.testing.assert_allclose(np.unique(amounts), sorted(expected), atol=1e-9)


def test_the_ends_of_the_ranges() -> None:
    """By hand, from torchvision's code."""
    strongest = {
        True: {"shear_x": 0.99, "translate_y": 32, "rotate": 135, "sharpness": 1.99, "posterize": 2, "solarize": 0},
        False: {"shear_x": 0.3, "translate_y": 101, "rotate": 30, "sharpness": 1.9, "posterize": 4, "solarize": 0},
    }
    for wide, by_name in strongest.items():
        for name, amount in by_name.items():
            assert drawn(Policy(1, 30, wide, (name,)), 64).amounts.max() == pytest.approx(amount)
    assert drawn(Policy(1, 0, names=("posterize",)), 1).amounts.item() == 8
    assert drawn(Policy(1, 0, names=("solarize",)), 1).amounts.item() == 255


def test_trivial_draws_every_operation_magnitude_and_sign_alike() -> None:
    found = drawn(Policy.trivial())
    assert found.numbers.shape == (N, 1)
    shares = np.bincount(found.numbers[:, 0], minlength=14) / N
    np.testing.assert_allclose(shares, 1 / 14, atol=5 * (1 / 14 / N) ** 0.5)
    for name, largest, middle in (("rotate", 135, 0), ("contrast", 0.99, 1), ("shear_y", 0.99, 0)):
        steps = 30 * (found.amounts[found.numbers == OPERATIONS.index(name)] - middle) / largest
        counts = np.bincount(np.abs(np.round(steps)).astype(int), minlength=31) / len(steps)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
        np.testing.assert_allclose(counts, 1 / 31, atol=5 * (1 / 31 / len(steps)) ** 0.5)
        assert (steps[np.round(steps) != 0] > 0).mean() == pytest.approx(0.5, abs=0.05)
        assert np.corrcoef(np.abs(steps), steps > 0)[0, 1] == pytest.approx(0, abs=0.08)  # 0 has no sign


def test_rand_draws_each_of_its_operations_apart_and_all_of_one_magnitude() -> None:
    found = drawn(Policy.rand(2, 9))
    pairs = np.bincount(found.numbers @ [14, 1], minlength=14 * 14) / N
    np.testing.assert_allclose(pairs, 1 / 14**2, atol=5 * (1 / 14**2 / N) ** 0.5)
    angles = np.abs(found.amounts[found.numbers == OPERATIONS.index("rotate")])
    np.testing.assert_allclose(angles, 9)
    assert Policy.rand() == Policy(2, 9, wide=False)


def test_a_policy_leaves_the_other_draws_alone() -> None:
    uniform, sides = RecordUniform(0, 0, np.arange(2000)), np.full(2000, 300)
    plain = AugmentSpec.standard().draw(uniform, sides, sides, SIZE)
    spec = AugmentSpec.trivial()
    ours = spec.draw(uniform, sides, sides, SIZE)
    drew = spec.policy.draw(uniform, SIZE)
    is_geometry = np.isin(drew.numbers[:, 0], [OPERATIONS.index(name) for name in GEOMETRY])
    same = ~is_geometry | (drew.amounts[:, 0] == 0)
    np.testing.assert_array_equal(ours.affine[same], plain.affine[same])
    assert is_geometry.mean() == pytest.approx(5 / 14, abs=0.05)
    # Where the image is moved, the box is the crop: what is outside of it becomes black.
    np.testing.assert_array_equal(ours.box[~same], plain.box[~same])
    linear = np.isin(drew.numbers[:, 0], [OPERATIONS.index(name) for name in LINEAR])
    np.testing.assert_array_equal(ours.colour[~linear], plain.colour[~linear])


@pytest.mark.parametrize("name", GEOMETRY)
def test_a_warp_is_pillows(name: str) -> None:
    """Pillow's transforms give the same pixels; at the borders it repeats half a pixel, where ours fade to black."""
    side = 40
    photo = Image.effect_noise((8, 8), 90).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
    amount = {"shear_x": 0.4, "shear_y": -0.3, "translate_x": 7, "translate_y": -5, "rotate": 25}[name]
    data = {
        "shear_x": (1, amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, amount, 1, 0),
        "translate_x": (1, 0, -amount, 0, 1, 0),  # to the right
        "translate_y": (1, 0, 0, 0, 1, -amount),  # down
    }
    bilinear = Image.Resampling.BILINEAR
    if name == "rotate":
        expected = photo.rotate(amount, bilinear)
    else:
        expected = photo.transform(photo.size, Image.Transform.AFFINE, data[name], bilinear)
    warp = operations((name, amount), size=side).warp[0]
    x, y = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    at = np.einsum("ij,jyx->iyx", warp, np.stack([x, y, np.ones_like(x)]))
    found = oracle._bilinear(np.asarray(photo, float), at[0], at[1])
    inner = np.all((at[:2] > 0.5) & (at[:2] < side - 0.5), axis=0)
    outer = np.any((at[:2] < -0.5) | (at[:2] > side + 0.5), axis=0)
    assert np.abs(found - np.asarray(expected, float))[inner].max() <= 1
    assert not np.asarray(expected)[outer].any()
    assert found[outer].max() < 0.5


def test_warps_follow_each_other() -> None:
    """A picture is shifted to the right, then turned by a quarter: the shift ends upwards."""
    warp = operations(("translate_x", 10), ("rotate", 90), size=100).warp[0]
    np.testing.assert_allclose(warp @ [50, 40, 1], [50, 50, 1], atol=1e-9)
    warp = operations(("rotate", 90), ("translate_x", 10), size=100).warp[0]
    np.testing.assert_allclose(warp @ [60, 50, 1], [50, 50, 1], atol=1e-9)


def test_the_first_change_of_colours_is_in_the_matrix_if_it_is_linear() -> None:
    steps = [("rotate", 5.0), ("brightness", 1.5), ("saturation", 0.5)]
    found = operations(*steps)
    np.testing.assert_allclose(found.colour[0], 1.5 * np.eye(3))
    assert [(TONES[int(number)], amount) for number, amount in found.tones[0]] == [
        ("none", 0),
        ("none", 0),
        ("saturation", 0.5),
    ]
    found = operations(("equalize", 0), ("brightness", 0.25))
    np.testing.assert_array_equal(found.colour[0], np.eye(3))
    assert found.tones[0].tolist() == [[TONES.index("equalize"), 0], [TONES.index("brightness"), 0.25]]
    grey = operations(("saturation", 0.0)).colour[0] @ [200, 30, 90]
    np.testing.assert_allclose(grey, 0.299 * 200 + 0.587 * 30 + 0.114 * 90)


def test_a_policy_says_whether_anything_is_left_to_the_device() -> None:
    assert Policy.trivial().has_tones
    assert not Policy(names=(*GEOMETRY, *LINEAR, "identity")).has_tones
    assert Policy(2, names=LINEAR).has_tones  # the second one
    assert not Policy(2, names=GEOMETRY).has_tones
    assert AugmentSpec.standard().tones(RecordUniform(0, 0, np.arange(3)), 32).shape == (3, 0, 2)
    for policy in (Policy(names=(*GEOMETRY, *LINEAR)), Policy(2, names=GEOMETRY)):
        assert not drawn(policy, 1000).tones.any()


def test_draws_stay_what_they_were() -> None:
    """Runs are resumed by later versions, so a seed has to keep its draws."""
    found = Policy(3).draw(RecordUniform(7, 3, np.array([0, 5, 1_000_000])), 224)
    expected = [
        [("solarize", 195.5), ("contrast", 0.472), ("shear_x", -0.495)],
        [("saturation", 1.66), ("translate_y", 19), ("equalize", 0)],
        [("shear_x", -0.528), ("translate_x", -7), ("rotate", 90)],
    ]
    assert [[OPERATIONS[number] for number in row] for row in found.numbers.tolist()] == [
        [name for name, _ in row] for row in expected
    ]
    np.testing.assert_allclose(found.amounts, [[amount for _, amount in row] for row in expected], rtol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count must be at least 1, not 0"),
        ({"count": 9}, "count must be at most 8, not 9"),
        ({"magnitude": 31}, "magnitude must be at most 30, not 31"),
        ({"names": ("blur",)}, "'blur' is not one of identity, shear_x"),
        ({"names": ()}, "at least one operation"),
    ],
)
def test_wrong_values_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Policy(**wrong)
    with pytest.raises(UserError, match="center_crop cannot be combined"):
        dataclasses.replace(AugmentSpec.evaluation(), policy=Policy.trivial())
