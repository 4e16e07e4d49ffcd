"""How long work reports its progress: to a callable, or as a bar in the terminal."""

from collections.abc import Callable

# (the stage, how much of it is done, how much there is)
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """A `Progress` that prints nothing."""


class ProgressBar:
    """A `Progress` with one bar for each stage: images/s and the time left. It prints nothing if stderr is a file."""

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
        """Ends the last bar, so that the next output starts on a new line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
