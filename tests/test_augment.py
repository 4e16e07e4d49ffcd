"""AugmentSpec: matrices agree with plain geometry and colour arithmetic, and draws with the ranges of the spec."""

import colorsys
import dataclasses

import numpy as np
import pytest

from pipelines import AugmentSpec, UserError
from pipelines.augment import is_plain_shrink, source_box
from pipelines.policy import Policy
from pipelines.uniform import RecordUniform
from tests.helpers import oracle

N = 100_000


class Columns(RecordUniform):
    """One record whose numbers are given by name; 0.5 in all other columns."""

    NAMES = ("flip", "rotate", "angle", "brightness", "contrast", "saturation", "hue", "crop_x", "crop_y")

    def __init__(self, **values: float) -> None:
        super().__init__(0, 0, np.arange(1))
        object.__setattr__(self, "by_number", {self.NAMES.index(name): value for name, value in values.items()})

    def __call__(self, column: int) -> np.ndarray:
        return np.array([self.by_number.get(column, 0.5)])


def draw_one(spec: AugmentSpec, height: int, width: int, size: int, **values: float):
    return spec.draw(Columns(**values), np.array([height]), np.array([width]), size)


def apply(matrix: np.ndarray, *point: float) -> np.ndarray:
    return matrix @ np.array([*point, 1.0])


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(200, 600, (2, N))
    spec = AugmentSpec(
        crop_area=(0.6, 1.0),
        crop_aspect=(3 / 4, 4 / 3),
        flip=0.5,
        rotation=15.0,
        rotation_probability=0.75,
        brightness=32 / 255,
        contrast=(0.8, 1.2),
        saturation=(0.5, 1.5),
    )
    return spec, heights, widths, spec.draw(RecordUniform(0, 0, np.arange(N)), heights, widths, 224)


def test_without_augmentation_a_square_is_only_resized() -> None:
    draws = draw_one(AugmentSpec(), 100, 100, 50)
    np.testing.assert_allclose(draws.affine[0], [[2, 0, 0], [0, 2, 0]], atol=1e-12)
    np.testing.assert_allclose(draws.colour[0], np.eye(3, 4), atol=1e-12)
    np.testing.assert_array_equal(draws.box[0], [0, 0, 100, 100])


def test_a_flip_mirrors() -> None:
    draws = draw_one(AugmentSpec(flip=0.5), 100, 100, 50, flip=0.4)
    np.testing.assert_allclose(apply(draws.affine[0], 0, 0), [100, 0], atol=1e-9)
    np.testing.assert_allclose(apply(draws.affine[0], 50, 50), [0, 100], atol=1e-9)


def test_rotation_is_counter_clockwise_about_the_centre() -> None:
    spec = AugmentSpec(rotation=90, rotation_probability=1.0)
    draws = draw_one(spec, 100, 100, 100, angle=1.0)
    np.testing.assert_allclose(apply(draws.affine[0], 50, 50), [50, 50], atol=1e-9)
    # what was at the right edge is at the top after a quarter turn to the left
    np.testing.assert_allclose(apply(draws.affine[0], 50, 0), [100, 50], atol=1e-9)


def test_evaluation_is_the_centred_square() -> None:
    draws = draw_one(AugmentSpec.evaluation(0.875), 400, 800, 224)
    np.testing.assert_allclose(apply(draws.affine[0], 112, 112), [400, 200], atol=1e-9)
    np.testing.assert_allclose(apply(draws.affine[0], 224, 224), [400 + 175, 200 + 175], atol=1e-9)


def test_colour_equals_the_steps_one_by_one() -> None:
    spec = AugmentSpec(brightness=0.2, contrast=(0.5, 1.5), saturation=(0.0, 2.0))
    matrix = draw_one(spec, 9, 9, 9, brightness=0.9, contrast=0.8, saturation=0.7).colour[0]
    pixel = np.array([200.0, 30.0, 90.0])
    brighter = pixel + 0.8 * 0.2 * 255
    contrasted = (brighter - 127.5) * 1.3 + 127.5
    luma = 0.299 * contrasted[0] + 0.587 * contrasted[1] + 0.114 * contrasted[2]
    np.testing.assert_allclose(apply(matrix, *pixel), luma + 1.4 * (contrasted - luma), atol=1e-9)


def test_hue_turns_colours_and_leaves_greys_and_luma() -> None:
    matrix = draw_one(AugmentSpec(hue=120), 9, 9, 9, hue=1.0).colour[0]
    np.testing.assert_allclose(apply(matrix, 77, 77, 77), [77, 77, 77], atol=0.05)
    red = np.array([180.0, 60.0, 60.0])
    turned = apply(matrix, *red)
    weights = [0.299, 0.587, 0.114]
    assert turned @ weights == pytest.approx(red @ weights, abs=0.05)
    before, after = (np.array(colorsys.rgb_to_yiq(*(rgb / 255))) for rgb in (red, turned))
    cosine = before[1:] @ after[1:] / np.linalg.norm(before[1:]) / np.linalg.norm(after[1:])
    assert np.rad2deg(np.arccos(cosine)) == pytest.approx(120, abs=1)
    np.testing.assert_allclose(draw_one(AugmentSpec(hue=120), 9, 9, 9).colour[0], np.eye(3, 4), atol=1e-12)


def test_flips_and_angles_are_drawn_as_specified(many) -> None:
    spec, _, _, draws = many
    linear = draws.affine[:, :, :2]
    flipped = np.linalg.det(linear) < 0
    assert flipped.mean() == pytest.approx(spec.flip, abs=0.01)
    angle = np.rad2deg(np.arctan2(-linear[:, 0, 1], linear[:, 1, 1]))
    turned = np.abs(angle) > 1e-9
    assert turned.mean() == pytest.approx(spec.rotation_probability, abs=0.01)
    assert np.abs(angle).max() <= spec.rotation
    quartiles = np.quantile(angle[turned], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [-7.5, 0, 7.5], atol=0.2)
    assert np.corrcoef(flipped, angle)[0, 1] == pytest.approx(0, abs=0.02)


def test_crops_are_drawn_as_specified(many) -> None:
    _, heights, widths, draws = many
    linear = draws.affine[:, :, :2] * 224
    crop_w = np.hypot(linear[:, 0, 0], linear[:, 1, 0])
    crop_h = np.hypot(linear[:, 0, 1], linear[:, 1, 1])
    assert np.all(crop_w <= widths + 1e-6)
    assert np.all(crop_h <= heights + 1e-6)
    area = crop_w * crop_h / (heights * widths)
    for side in (crop_w, crop_h):
        np.testing.assert_allclose(side, np.round(side), atol=1e-6)
    aspect = crop_w / crop_h  # of whole pixels, so it leaves its range by half a pixel
    assert aspect.min() >= 3 / 4 - 0.01
    assert aspect.max() <= 4 / 3 + 0.01
    # in an image of a legal aspect the area keeps its range; only far too long images fall back to less
    legal = (widths / heights >= 3 / 4) & (widths / heights <= 4 / 3)
    assert area[legal].min() >= 0.6 - 0.005
    square = np.abs(widths / heights - 1) < 0.02
    for small in (0.6, 0.62):  # all of the small crops fit, so their draw is undisturbed: uniform in area
        assert ((area[square] >= small) & (area[square] < small + 0.02)).mean() == pytest.approx(0.055, abs=0.03)
    assert np.log(aspect[square]).mean() == pytest.approx(0, abs=0.02)


def test_small_crops_are_uniform_in_area_log_aspect_and_place() -> None:
    size = np.full(N, 300)
    spec = AugmentSpec(crop_area=(0.08, 0.5), crop_aspect=(3 / 4, 4 / 3))  # each fits at the first try
    affine = spec.draw(RecordUniform(1, 2, np.arange(N)), size, size, 224).affine
    crop_w, crop_h = affine[:, 0, 0] * 224, affine[:, 1, 1] * 224
    deciles = np.linspace(0.1, 0.9, 9)
    area = (crop_w * crop_h / 300**2 - 0.08) / 0.42
    log_aspect = (np.log(crop_w / crop_h) - np.log(3 / 4)) / (2 * np.log(4 / 3))
    for drawn in (area, log_aspect, affine[:, 0, 2] / (300 - crop_w), affine[:, 1, 2] / (300 - crop_h)):
        np.testing.assert_allclose(np.quantile(drawn, deciles), deciles, atol=0.01)


@pytest.mark.parametrize("sides", [(1, 7), (20, 400)])
@pytest.mark.parametrize("area", [(0.01, 0.2), (0.4, 1.0)])
def test_crops_are_the_first_of_ten_tries_that_fits(sides: tuple[int, int], area: tuple[float, float]) -> None:
    """One by one against the oracle; many images are too long for the first tries, some for all ten."""
    heights, widths = np.random.default_rng(3).integers(*sides, (2, 2000))
    spec, uniform = AugmentSpec(crop_area=area, crop_aspect=(3 / 4, 4 / 3)), RecordUniform(4, 5, np.arange(2000))
    affine = spec.draw(uniform, heights, widths, 1).affine
    found = np.stack([affine[:, 0, 2], affine[:, 1, 2], affine[:, 0, 0], affine[:, 1, 1]], axis=1)
    columns = np.stack([uniform(column) for column in range(30)], axis=1)
    expected = [
        oracle.crop(spec, dict(enumerate(u)), int(height), int(width))
        for u, height, width in zip(columns.tolist(), heights, widths, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_area_of_a_huge_image_does_not_overflow() -> None:
    side = np.array([50_000], np.int32)
    affine = AugmentSpec(crop_area=(0.25, 0.25)).draw(RecordUniform(0, 0, np.arange(1)), side, side, 1).affine
    assert affine[0, 0, 0] == affine[0, 1, 1] == 25_000


def test_a_probability_of_0_is_never() -> None:
    never = AugmentSpec(rotation=90, flip=0.0, rotation_probability=0.0)
    draws = draw_one(never, 100, 100, 100, flip=0.0, rotate=0.0, angle=1.0)
    np.testing.assert_array_equal(draws.affine[0], np.eye(2, 3))


def test_colours_are_drawn_as_specified(many) -> None:
    spec, _, _, draws = many
    grey_gain = draws.colour[:, :, :3].sum(axis=2)
    contrast = grey_gain[:, 0]
    np.testing.assert_allclose(grey_gain, contrast[:, None].repeat(3, axis=1), atol=1e-12)
    saturation = (draws.colour[:, 0, 0] - draws.colour[:, 1, 0]) / contrast
    brightness = (draws.colour[:, 0, 3] - (1 - contrast) * 127.5) / contrast / 255
    for drawn, (low, high) in (
        (contrast, spec.contrast),
        (saturation, spec.saturation),
        (brightness, (-spec.brightness, spec.brightness)),
    ):
        assert drawn.min() >= low - 1e-9
        assert drawn.max() <= high + 1e-9
        expected = low + np.linspace(0.1, 0.9, 9) * (high - low)
        np.testing.assert_allclose(np.quantile(drawn, np.linspace(0.1, 0.9, 9)), expected, atol=0.02 * (high - low))


def test_hues_are_drawn_as_specified() -> None:
    uniform, size = RecordUniform(0, 0, np.arange(N)), np.full(N, 64)
    colour = AugmentSpec(hue=36).draw(uniform, size, size, 32).colour[:, :, :3]
    i_axis = np.linalg.inv([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])[:, 1]
    turned = colour @ i_axis @ np.array([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]).T
    degrees = np.rad2deg(np.arctan2(turned[:, 1], turned[:, 0]))
    np.testing.assert_allclose(np.quantile(degrees, [0, 0.25, 0.5, 0.75, 1]), [-36, -18, 0, 18, 36], atol=0.5)


def test_the_source_box_holds_every_tap_and_no_more_than_needed(many) -> None:
    _, heights, widths, draws = many
    sides = np.array([0.5, 223.5])
    for x in sides:
        for y in sides:
            at = draws.affine @ np.array([x, y, 1.0])
            for axis, limit, low, length in ((0, widths, 1, 3), (1, heights, 0, 2)):
                start = draws.box[:, low]
                end = start + draws.box[:, length]
                first = np.clip(np.floor(at[:, axis] - 0.5), 0, limit - 1)
                last = np.clip(np.floor(at[:, axis] + 0.5 - 1e-6), 0, limit - 1)  # of a weight over 0
                assert np.all(start <= first)
                assert np.all(end > last)
    assert draws.box[:, 2].mean() < heights.mean()


def straight(*cases: tuple[float, float, float, float]) -> np.ndarray:
    """Matrices of (x, y) and the steps (in x, in y) of the source for one pixel of the output."""
    return np.array([[[step_x, 0, x], [0, step_y, y]] for x, y, step_x, step_y in cases])


def test_the_source_box_is_the_crop_and_has_a_rim_where_what_turns_may_look_outside() -> None:
    turning = {
        (10, 20, 2.0, 1.5): (20, 10, 75, 100),
        (110, 20, -2.0, 1.0): (20, 10, 50, 100),
        (10, 20, 0.5, 1.5): (19, 9, 77, 27),
        (10, 20, 1.5, 0.5): (19, 9, 27, 77),
        (0, 0, 0.5, 0.5): (0, 0, 26, 26),
        (175, 275, 0.5, 0.5): (274, 174, 26, 26),
        (999, 999, 2.0, 2.0): (299, 199, 1, 1),
        (-999, -999, 2.0, 2.0): (0, 0, 1, 1),
    }
    repeating = turning | {
        (10, 20, 0.5, 1.5): (20, 10, 75, 25),
        (10, 20, 1.5, 0.5): (20, 10, 25, 75),
        (0, 0, 0.5, 0.5): (0, 0, 25, 25),
        (175, 275, 0.5, 0.5): (275, 175, 25, 25),
        (10.3, 20.3, 0.5, 0.5): (20, 10, 26, 26),
        (35.3, 20.3, -0.5, 0.5): (20, 10, 26, 26),
        (10.3, 20.3, 0.01, 0.02): (20, 10, 2, 1),
    }
    for turns, cases in ((True, turning), (False, repeating)):
        heights, widths = np.full(len(cases), 300.0), np.full(len(cases), 200.0)
        box = source_box(straight(*cases), heights, widths, 50, turns)
        assert box.dtype == np.int32
        np.testing.assert_array_equal(box, list(cases.values()))


@pytest.mark.parametrize("size", [16, 1000])
def test_where_nothing_turns_the_box_is_the_crop_to_the_pixel(size: int) -> None:
    heights, widths = np.random.default_rng(0).integers(1, 600, (2, 2000))
    draws = AugmentSpec.standard().draw(RecordUniform(0, 0, np.arange(2000)), heights, widths, size)
    sides = size * np.abs(draws.affine[:, [1, 0], [1, 0]])
    first = draws.affine[:, [1, 0], 2] - np.where(draws.affine[:, [1, 0], [1, 0]] < 0, sides, 0)
    np.testing.assert_allclose(draws.box, np.concatenate([first, sides], axis=1), atol=1e-9)


def test_a_plain_shrink_neither_turns_nor_enlarges() -> None:
    shrunk = straight((3, 4, 1.5, 2.5), (3, 4, -1.5, 2.5), (0, 0, 1.0, 1.0), (0, 0, 1 - 1e-9, 1.0))
    others = straight((3, 4, 0.9, 2.5), (3, 4, 2.5, 0.9), (3, 4, -0.9, 2.5), (0, 0, 3.0, 3.0), (0, 0, 3.0, 3.0))
    others[3, 0, 1] = 0.01
    others[4, 1, 0] = -0.01
    assert is_plain_shrink(np.concatenate([shrunk, others])).tolist() == [True] * 4 + [False] * 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_area": (0.6, 1.1)},
        {"crop_area": (0.0, 1.0)},
        {"crop_aspect": (2.0, 1.0)},
        {"crop_aspect": (0.0, 1.0)},
        {"crop_aspect": (1.0, float("inf"))},
        {"saturation": (-0.1, 1.0)},
        {"contrast": (float("nan"), 1.0)},
        {"flip": 1.5},
        {"rotation_probability": -0.1},
        {"brightness": 1.5},
        {"rotation": -1.0},
        {"hue": 180.5},
        {"center_crop": 0.0},
        {"center_crop": 1.5},
        {"center_crop": 0.875, "flip": 0.5},
        {"center_crop": 0.875, "rotation": 15.0, "rotation_probability": 0.5},
        {"center_crop": 0.875, "hue": 5.0},
        {"center_crop": 0.875, "crop_area": (0.5, 0.5)},
        {"center_crop": 0.875, "crop_aspect": (1.0, 1.5)},
    ],
)
def test_wrong_ranges_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match="augmentation"):
        AugmentSpec(**wrong)


def test_an_error_names_the_field_and_its_limits() -> None:
    messages = {
        "crop_area must be at most 1, not 0.6…1.1": {"crop_area": (0.6, 1.1)},
        "contrast must be a range (low, high), not 2.0…1.0": {"contrast": (2.0, 1.0)},
        "hue must be at most 180 degrees, not 180.5": {"hue": 180.5},
        "flip must be at least 0, not -0.1": {"flip": -0.1},
        "center_crop must be at most 1, not 1.5": {"center_crop": 1.5},
        "center_crop cannot be combined with random augmentation": {"center_crop": 0.875, "hue": 5.0},
    }
    for message, fields in messages.items():
        with pytest.raises(UserError) as caught:
            AugmentSpec(**fields)
        assert str(caught.value) == f"augmentation: {message}"


def test_the_ends_of_ranges_are_allowed() -> None:
    AugmentSpec(crop_area=(1e-9, 1.0), crop_aspect=(1e-9, 1.0), contrast=(0.0, 0.0), saturation=(0.0, 9.0))
    AugmentSpec(flip=1.0, rotation=180.0, rotation_probability=1.0, brightness=1.0, hue=180.0)
    AugmentSpec(flip=0.0, rotation=0.0, rotation_probability=0.0, brightness=0.0, hue=0.0, center_crop=1.0)


def test_a_spec_says_what_it_changes() -> None:
    """Loaders skip the operations that a spec cannot use, so a wrong answer would change pixels."""
    cases = {
        "nothing": ({}, set()),
        "crop": ({"crop_area": (0.5, 0.5)}, {"is_random"}),
        "aspect": ({"crop_aspect": (0.5, 2.0)}, {"is_random"}),
        "flip": ({"flip": 0.1}, {"is_random"}),
        "no angle": ({"rotation_probability": 1.0}, set()),
        "never turned": ({"rotation": 15.0}, set()),
        "rotation": ({"rotation": 0.5, "rotation_probability": 0.1}, {"turns", "is_random"}),
        "brightness": ({"brightness": 0.1}, {"jitters", "is_random"}),
        "contrast": ({"contrast": (1.0, 1.2)}, {"jitters", "is_random"}),
        "saturation": ({"saturation": (0.5, 1.0)}, {"jitters", "is_random"}),
        "hue": ({"hue": 1.0}, {"jitters", "is_random"}),
        "policy": ({"policy": Policy.trivial()}, {"turns", "jitters", "is_random", "has_tones"}),
        "moves": ({"policy": Policy(names=("rotate", "brightness"))}, {"turns", "jitters", "is_random"}),
        "evaluation": ({"center_crop": 0.875}, {"is_evaluation"}),
    }
    asked = ("turns", "jitters", "is_random", "is_evaluation", "has_tones")
    found = {
        case: {name for name in asked if getattr(AugmentSpec(**fields), name)} for case, (fields, _) in cases.items()
    }
    assert found == {case: expected for case, (_, expected) in cases.items()}


def test_every_field_is_declared_and_no_two_share_a_column() -> None:
    declared = AugmentSpec().operations
    assert list(declared) == [field.name for field in dataclasses.fields(AugmentSpec)]
    assert all(getattr(AugmentSpec(), name) == operation.neutral for name, operation in declared.items())
    columns = [column for operation in declared.values() for column in operation.columns]
    assert sorted([*columns, 7, 8]) == list(range(53))  # 7 and 8 are the crop's place


def test_draws_stay_what_they_were() -> None:
    """Runs are resumed by later versions, so a seed has to keep its draws."""
    geometry = {"crop_area": (0.3, 0.9), "crop_aspect": (0.6, 1.7), "flip": 0.5, "rotation": 40.0}
    colours = {"brightness": 0.2, "contrast": (0.7, 1.4), "saturation": (0.0, 2.0), "hue": 60.0}
    spec = AugmentSpec(**geometry, **colours, rotation_probability=0.7)
    draws = spec.draw(RecordUniform(7, 3, np.array([0, 5, 1_000_000])), np.full(3, 375), np.full(3, 500), 224)
    affine = [
        [[1.339285714285714, 0, 0], [0, 1.004464285714286, 140]],
        [
            [-1.447855059169676, -0.920943722060985, 514.499005585170],
            [-1.105132466473182, 1.206545882641397, 188.735331719055],
        ],
        [
            [-1.670768817083564, 0.493677581526569, 350.382556911406],
            [0.604565161377153, 1.364321270231554, -25.888360197852],
        ],
    ]
    colour = [
        [1.879161035480074, -0.574996925519018, -0.063413769601090, -93.783234029480923],
        [-0.054917422066403, 1.100776944179968, -0.024362269089700, -1.958887725613378],
        [0.398200867792151, 0.394550984105846, 0.193106103334481, 19.100422540356352],
    ]
    np.testing.assert_allclose(draws.affine, affine, rtol=1e-11)
    np.testing.assert_allclose(draws.colour[range(3), range(3)], colour, rtol=1e-11)
    np.testing.assert_array_equal(draws.box, [[140, 0, 225, 300], [0, 0, 375, 500], [0, 0, 375, 462]])


def test_the_specs_that_have_names() -> None:
    assert AugmentSpec.named("none") == AugmentSpec()
    standard = AugmentSpec(crop_area=(0.08, 1.0), crop_aspect=(0.75, 4 / 3), flip=0.5)
    assert AugmentSpec.named("standard") == standard
    assert AugmentSpec.named("full") == dataclasses.replace(
        standard,
        crop_area=(0.6, 1.0),
        rotation=15.0,
        rotation_probability=0.75,
        brightness=32 / 255,
        saturation=(0.5, 1.5),
    )
    assert AugmentSpec.evaluation() == AugmentSpec(center_crop=0.875)
    assert AugmentSpec.named("trivial") == dataclasses.replace(standard, policy=Policy.trivial())
    assert AugmentSpec.named("rand:3,15") == dataclasses.replace(standard, policy=Policy.rand(3, 15))
    with pytest.raises(UserError, match="full, standard, none, trivial, rand:N,M"):
        AugmentSpec.named("strong")
