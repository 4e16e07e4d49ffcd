"""One round each of what `python -m tests.helpers.interrupt` does fifty times: a command stopped at a random moment."""

from random import Random

import pytest

from tests.helpers import interrupt


@pytest.mark.parametrize("name", ["build", "index"])
def test_nothing_is_corrupt_after_a_signal(name: str) -> None:
    for what, count in interrupt.campaign(name, ["sigint", "kill"], 1, seed=Random().randrange(1000)).items():
        assert "WRONG" not in what, what
        assert count == 1
