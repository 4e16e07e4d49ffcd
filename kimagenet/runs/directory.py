"""The run directory: everything a training leaves behind, each file whole or absent but for the logs.

    recipe.json              the resolved recipe; repeats the run
    run.json                 version, the run's id, the data set, the loader, the versions of the libraries
    log.jsonl, summary.csv   see kimagenet.runs.reporters
    tensorboard/             see kimagenet.runs.tensorboard
    corrupt.jsonl            records that are skipped, if there are any: see kimagenet.training.recovery
    checkpoints/last.keras   after each epoch; best.keras: of the epoch with the highest validation top-1
    checkpoints/step-*.ckpt  to resume from: see kimagenet.runs.checkpoint
    final.keras              at the end

The .keras files hold the weights as they are evaluated (slow or averaged ones, if the recipe has them) and no
optimizer, so `keras.models.load_model` opens them where kimagenet is not installed.
"""

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimagenet.recipe import Recipe
from pipelines.errors import UserError
from pipelines.system.files import sync, write_atomic

if TYPE_CHECKING:
    import keras

RUN_VERSION = 1

_MARKS = ("recipe.json", "log.jsonl", "checkpoints", "final.keras")


@dataclass(frozen=True)
class RunDirectory:
    """The names of a run's files, and the ways to write and read them. Imports no Keras."""

    path: Path

    recipe = property(lambda self: self.path / "recipe.json")
    info = property(lambda self: self.path / "run.json")
    log = property(lambda self: self.path / "log.jsonl")
    summary = property(lambda self: self.path / "summary.csv")
    corrupt = property(lambda self: self.path / "corrupt.jsonl")
    tensorboard = property(lambda self: self.path / "tensorboard")
    checkpoints = property(lambda self: self.path / "checkpoints")
    last = property(lambda self: self.path / "checkpoints" / "last.keras")
    best = property(lambda self: self.path / "checkpoints" / "best.keras")
    final = property(lambda self: self.path / "final.keras")

    @classmethod
    def at(cls, path: Path) -> "RunDirectory":
        """For a run that is to begin, or one to go on with (`is_begun`).

        Raises `UserError` if `path` is no folder, or holds parts of something that is no run.
        """
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: not a folder; choose another --output")
        run = cls(path)
        if not run.is_begun and any((path / name).exists() for name in _MARKS):
            raise UserError(f"{path}: holds parts of a run, but no run.json; choose another --output or remove it")
        return run

    @property
    def is_begun(self) -> bool:
        """Whether there is a run in it."""
        return self.info.is_file()

    @classmethod
    def existing(cls, path: Path) -> "RunDirectory":
        """For a run that is there; raises `UserError` if it is not."""
        if not (path / "run.json").is_file():
            raise UserError(f"{path}: not a run directory (it has no run.json)")
        return cls(path)

    def begin(self, recipe: Recipe, info: dict[str, Any]) -> None:
        """Writes recipe.json and run.json, into a new folder or over those of the run that goes on."""
        info = {"version": RUN_VERSION, "id": self.id if self.is_begun else uuid.uuid4().hex, **info}
        try:
            if not self.is_begun:
                self.path.mkdir(parents=True, exist_ok=True)
                self.checkpoints.mkdir()  # not there yet: of two runs that start at once, one gets the folder
            write_atomic(self.recipe, recipe.to_json().encode())
            write_atomic(self.info, (json.dumps(info, indent=1) + "\n").encode())
        except FileExistsError:
            raise UserError(f"{self.path}: another run has just begun here; choose another --output") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); choose another --output") from None

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after so many steps of the whole run."""
        return self.checkpoints / f"step-{step:09d}.ckpt"

    def find_checkpoints(self) -> list[Path]:
        """What there is to resume from, the newest first."""
        return sorted(self.checkpoints.glob("step-*.ckpt"), reverse=True)

    def log_sizes(self) -> dict[str, int]:
        """The bytes of each log file, by its path in the run directory."""
        files = [self.log, self.summary, *sorted(self.tensorboard.rglob("*.tfevents"))]
        return {str(path.relative_to(self.path)): path.stat().st_size for path in files if path.exists()}

    def cut_logs(self, sizes: dict[str, int]) -> None:
        """Cuts the log files back to what they were when `log_sizes` gave `sizes`."""
        for name, size in self.log_sizes().items():
            if size > sizes.get(name, 0):
                os.truncate(self.path / name, sizes.get(name, 0))

    @property
    def id(self) -> str:
        """What tells this run's checkpoints from those of others; raises `UserError` as `read_info` does."""
        return self.read_info().get("id", "")

    def read_info(self) -> dict[str, Any]:
        """The content of run.json; raises `UserError` if it is damaged or of another version."""
        try:
            info = json.loads(self.info.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.info}: not a JSON file ({error})") from None
        if not isinstance(info, dict) or info.get("version") != RUN_VERSION:
            raise UserError(f"{self.info}: not the version {RUN_VERSION} of this release")
        return info


def save_model(model: "keras.Model", path: Path) -> None:
    """Writes a functional model without its optimizer under a temporary name, syncs it, renames it to `path`."""
    import keras

    bare = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.keras")
    try:
        bare.save(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
