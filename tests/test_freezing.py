"""Which layers are frozen: the decision, without Keras."""

import pytest

from kimagenet.networks.freezing import choose
from kimagenet.recipe import Recipe
from pipelines import UserError

NAMES = ["stem", "block1_conv", "block1_bn", "block2_conv", "Logits"]


@pytest.mark.parametrize(
    ("text", "frozen"),
    [
        ("none", ""),
        ("all-but-head", "stem block1_conv block1_bn block2_conv"),
        ("0", ""),
        ("3", "stem block1_conv block1_bn"),
        ("stem", "stem"),
        ("block1_*", "block1_conv block1_bn"),
        ("stem, *_conv", "stem block1_conv block2_conv"),
        ("Logits", "Logits"),
    ],
)
def test_a_text_names_the_frozen_layers(text: str, frozen: str) -> None:
    chosen = choose(text, NAMES, head=4)
    assert [name for name, is_frozen in zip(NAMES, chosen, strict=True) if is_frozen] == frozen.split()


def test_the_head_may_be_anywhere() -> None:
    assert choose("all-but-head", NAMES, head=1) == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blok1_conv", r"no layer with weights fits 'blok1_conv'; did you mean block1_conv\?"),
        ("stem,zzz*", r"fits 'zzz\*'; its first layers are stem, block1_conv, block1_bn, block2_conv"),
        ("stem,", "no layer with weights fits ''"),
        ("5", "5 freezes all 5 layers with weights, so nothing would be trained"),
        ("9" * 30, "freezes all 5 layers"),
        ("*", "freezes all 5 layers"),
    ],
)
def test_a_wrong_text_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        choose(text, NAMES, head=4)
    assert caught.value.setting == "freeze"


def test_unfreezing_needs_a_later_epoch() -> None:
    assert Recipe(epochs=3, unfreeze_epoch=2).unfreeze_epoch == 2
    with pytest.raises(UserError, match="unfreeze_epoch is 3, but the run has only 3 epochs"):
        Recipe(epochs=3, unfreeze_epoch=3)
