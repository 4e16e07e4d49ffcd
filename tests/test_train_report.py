"""What a training prints about itself."""

import pytest

from kimagenet.train_report import where_to_resume
from kimagenet.training.results import Position


@pytest.mark.parametrize(
    ("begin", "epochs", "has_validation", "text"),
    [
        (Position(0, 0), 2, True, "at epoch 1, step 1 of 9"),
        (Position(1, 8), 2, False, "at epoch 2, step 9 of 9"),
        (Position(1, 9), 2, True, "at epoch 2, its validation"),
        (Position(1, 9), 2, False, "at epoch 2, its end"),
        (Position(2, 0), 2, True, "nothing is left to train: 2 epochs are done, and the recipe has epochs=2"),
        (Position(5, 3), 2, True, "nothing is left to train: 5 epochs are done, and the recipe has epochs=2"),
        (Position(1, 0), 1, True, "nothing is left to train: 1 epoch is done, and the recipe has epochs=1"),
    ],
)
def test_a_resumed_run_says_what_is_left(begin: Position, epochs: int, has_validation: bool, text: str) -> None:
    assert where_to_resume(begin, epochs, 9, has_validation) == text
