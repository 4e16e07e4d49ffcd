"""The augmentation of a recipe as text, and the flags that change it."""

from dataclasses import replace
from pathlib import Path

import pytest

from kimagenet import augmentation, train_settings
from kimagenet.recipe import Recipe
from kimagenet.train_flags import make_parser
from pipelines import AugmentSpec, UserError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("full", AugmentSpec.train()),
        ("standard + flip=0", AugmentSpec(crop_area=(0.08, 1.0), crop_aspect=(3 / 4, 4 / 3))),
        ("none+crop_area=0.35:1", AugmentSpec(crop_area=(0.35, 1.0))),
        ("none + hue=10 + hue=20", AugmentSpec(hue=20.0)),
        ("trivial", AugmentSpec.trivial()),
        ("rand:2,9 + flip=0", replace(AugmentSpec.rand(2, 9), flip=0.0)),
        # A rotation that was never applied is applied to every image, unless its probability is said.
        ("none + rotation=30", AugmentSpec(rotation=30.0, rotation_probability=1.0)),
        ("none + rotation=30 + rotation_probability=0.5", AugmentSpec(rotation=30.0, rotation_probability=0.5)),
    ],
)
def test_a_text_is_an_augmentation(text: str, spec: AugmentSpec) -> None:
    assert augmentation.spec_of(text) == spec
    assert augmentation.spec_of(Recipe(augment=text).augment) == spec


def test_full_keeps_its_probability() -> None:
    assert augmentation.spec_of("full + rotation=30").rotation_probability == AugmentSpec.train().rotation_probability


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fuller", "augment must be one of full, standard, none, trivial, rand:N,M or module:function, not 'fuller'"),
        ("rand", "augment must be one of "),
        ("rand:N,M", "augment must be one of "),
        ("rand:2", "augment must be one of "),
        ("rand:0,9", "augment: rand:0,9: count must be at least 1, not 0"),
        ("rand:2,31", "augment: rand:2,31: magnitude must be at most 30, not 31"),
        ("trivial + policy=3", "augment: 'policy=3' changes none of "),
        ("full + blur=3", "augment: 'blur=3' changes none of crop_area, crop_aspect, flip, "),
        ("full + center_crop=0.9", "augment: 'center_crop=0.9' changes none of "),
        ("full + rotation", "augment: 'rotation' has not the form rotation=NUMBER"),
        ("full + rotation=1:2", "augment: 'rotation=1:2' has not the form rotation=NUMBER"),
        ("full + crop_area=0.5", "augment: 'crop_area=0.5' has not the form crop_area=LOW:HIGH"),
        ("full + hue=nan", "augmentation: hue must be a finite number, not nan"),
        ("full + crop_area=1:0.5", "augmentation: crop_area must be a range (low, high), not 1.0…0.5"),
        ("full + flip=1.5", "augmentation: flip must be at most 1, not 1.5"),
    ],
)
def test_a_wrong_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Recipe(augment=text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--rotation=30"], "full + rotation=30"),
        (["--augment=standard", "--crop-area", "0.35", "1"], "standard + crop_area=0.35:1"),
        (["--augment=trivial", "--brightness=0.1"], "trivial + brightness=0.1"),
        (["--augment=rand:2,9"], "rand:2,9"),
        (["--augment=none + hue=5 + flip=0.5", "--hue=10"], "none + hue=10 + flip=0.5"),
        ([], "full"),
    ],
)
def test_flags_change_the_augmentation(flags: list[str], text: str, tmp_path: Path) -> None:
    parsed = make_parser().parse_args(["googlenet_bn", f"--dataset-dir={tmp_path}", *flags])
    recipe, _ = train_settings.resolve_recipe(parsed)
    assert recipe.augment == text
    again, _ = train_settings.resolve_recipe(make_parser().parse_args([]), of_run=recipe)
    assert again == recipe


def test_every_augmentation_has_a_flag() -> None:
    text = make_parser().format_help()
    for name in augmentation.changeable():
        assert f"--{name.replace('_', '-')} " in text


def test_a_function_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_spec.py").write_text(
        "from pipelines import AugmentSpec\n"
        "def gentle():\n    return AugmentSpec(flip=0.5)\n"
        "def wrong():\n    return 'full'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Recipe(augment="my_spec:gentle + hue=5")
    assert augmentation.spec_of(recipe.augment) == AugmentSpec(flip=0.5, hue=5.0)
    with pytest.raises(UserError, match="my_spec:wrong: returned str, not an AugmentSpec"):
        augmentation.spec_of("my_spec:wrong")
    with pytest.raises(UserError, match="nowhere:spec: the module cannot be imported"):
        augmentation.spec_of(Recipe(augment="nowhere:spec").augment)
