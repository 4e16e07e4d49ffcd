"""How long work tells how far it is: a callable, or a bar in the terminal."""

from collections.abc import Callable

# (what is being done, how much of it is done, how much there is)
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """A `Progress` that says nothing."""


class ProgressBar:
    """A `Progress` that draws one bar a stage in a terminal (in a file nothing): images/s and the time left."""

    def __init__(self, unit: str = "images") -> None:
        from tqdm import tqdm

        self._unit = unit
        self._tqdm = tqdm
        self._bar: tqdm | None = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bar is None or stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = self._tqdm(
                desc=stage, initial=done, total=total, disable=None, unit=f" {self._unit}", smoothing=0.1
            )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Ends the last bar, so that what is printed next gets a line of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
