"""The run directory: every file of a training. Each file is complete or absent, except logs, which grow.

    recipe.json              the complete recipe; it repeats the run
    run.json                 version, id of the run, data set, loader, versions of the libraries
    log.jsonl, summary.csv   see kimagenet.runs.reporters
    tensorboard/             see kimagenet.runs.tensorboard
    corrupt.jsonl            skipped records, if there are any: see kimagenet.training.recovery
    checkpoints/last.keras   after each epoch; best.keras: of the epoch with the highest validation top-1
    checkpoints/step-*.ckpt  to resume from: see kimagenet.runs.checkpoint
    final.keras              at the end
    base/                    a copy of the model file that it began from: see kimagenet.inference.kept_model
    .lock                    while a process trains: see pipelines.system.lock

The .keras files contain the weights that are evaluated (slow or averaged ones, if the recipe has them) and no
optimizer, so `keras.models.load_model` opens them without kimagenet.
"""

import json
import os
import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimagenet.recipe import Recipe
from pipelines.errors import UserError
from pipelines.system import json_text
from pipelines.system.files import atomic_path, remove_leftovers, write_own
from pipelines.system.lock import owned
from pipelines.system.reading import read_file

if TYPE_CHECKING:
    import keras

RUN_VERSION = 1

_PARTS = ("recipe.json", "log.jsonl", "checkpoints", "final.keras")
_ELSEWHERE = "choose another output folder"


@dataclass(frozen=True)
class RunDirectory:
    """Names the files of a run, and reads and writes them. Does not import Keras.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """recipe.json."""
        return self.path / "recipe.json"

    @property
    def info(self) -> Path:
        """run.json. A folder is a run directory if it has this file."""
        return self.path / "run.json"

    @property
    def log(self) -> Path:
        """log.jsonl."""
        return self.path / "log.jsonl"

    @property
    def summary(self) -> Path:
        """summary.csv."""
        return self.path / "summary.csv"

    @property
    def corrupt(self) -> Path:
        """corrupt.jsonl."""
        return self.path / "corrupt.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, and of the models of the last and the best epoch."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The model after the last epoch so far."""
        return self.checkpoints / "last.keras"

    @property
    def best(self) -> Path:
        """The model after the epoch with the highest validation top-1."""
        return self.checkpoints / "best.keras"

    @property
    def final(self) -> Path:
        """The model at the end of the run."""
        return self.path / "final.keras"

    @property
    def base(self) -> Path:
        """The folder for a copy of the model file that the run began from."""
        return self.path / "base"

    @classmethod
    def at(cls, path: Path) -> "RunDirectory":
        """The directory of a new run, or of one to continue (`is_begun`).

        Raises:
            UserError: `path` is not a folder and cannot become one, or has files of a run but no run.json.
        """
        for part in (path, *path.parents):
            if os.path.lexists(part) and not part.is_dir():
                raise UserError(_no_folder(part), path=part, remedy=_ELSEWHERE, setting="output")
        run = cls(path)
        if not (run.is_begun or run.was_killed_at_begin) and any((path / name).exists() for name in _PARTS):
            what, remedy = "has files of a run, but no run.json", f"{_ELSEWHERE}, or remove it"
            raise UserError(what, path=path, remedy=remedy, setting="output")
        return run

    @property
    def is_begun(self) -> bool:
        """Whether there is a run in it."""
        return self.info.is_file()

    @property
    def was_killed_at_begin(self) -> bool:
        """Whether `begin` was killed here before it wrote run.json: nothing was trained, so a run can begin again."""
        is_trained = any(path.exists() for path in (self.info, self.log, self.final))
        return not is_trained and self.checkpoints.is_dir() and not any(self.checkpoints.iterdir())

    @classmethod
    def existing(cls, path: Path) -> "RunDirectory":
        """The directory of a run that exists; raises `UserError` if there is none."""
        if not (path / "run.json").is_file():
            raise UserError("not a run directory (it has no run.json)", path=path)
        return cls(path)

    def owned(self) -> AbstractContextManager[None]:
        """Within it, no other process trains in this directory; raises `UserError` if one does."""
        return owned(self.path, "output")

    def check_new(self) -> None:
        """Raises `UserError` if a run has begun since the caller looked."""
        if self.is_begun:
            raise UserError("another run has just begun here", path=self.path, remedy=_ELSEWHERE, setting="output")

    def check_dataset(self, folder: Path) -> None:
        """Raises `UserError` if the data set of this run, which there was once, is not in a folder."""
        if not folder.is_dir():
            what, remedy = f"there is no folder {folder} with its data set", "say where the data set is now"
            raise UserError(what, path=self.path, remedy=remedy, setting="dataset_dir")

    def begin(self, recipe: Recipe, info: dict[str, Any]) -> None:
        """Writes recipe.json and run.json, into a new folder or over those of a run that is resumed.

        The caller owns the folder (`owned`) and has looked again whether it is new (`check_new`).

        Args:
            recipe: the recipe of the run.
            info: the content of run.json, except `version` and `id`.

        Raises:
            UserError: the folder cannot be written.
        """
        info = {"version": RUN_VERSION, "id": self.id if self.is_begun else uuid.uuid4().hex, **info}
        try:
            if not self.is_begun:
                # First: it says that the files beside it are of a run, see `was_killed_at_begin`.
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self.path)
            write_own(self.recipe, recipe.to_json().encode())
            write_own(self.info, (json.dumps(info, indent=1) + "\n").encode())
        except OSError as error:
            what = f"cannot be written ({error.strerror})"
            raise UserError(what, path=self.path, remedy=_ELSEWHERE, setting="output") from None

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after `step` steps of the whole run."""
        return self.checkpoints / f"step-{step:09d}.ckpt"

    def find_checkpoints(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return sorted(self.checkpoints.glob("step-*.ckpt"), reverse=True)

    def log_sizes(self) -> dict[str, int]:
        """The bytes of each log file, by its path in the run directory."""
        files = [self.log, self.summary, *sorted(self.tensorboard.rglob("*.tfevents"))]
        return {str(path.relative_to(self.path)): path.stat().st_size for path in files if path.exists()}

    def cut_logs(self, sizes: dict[str, int]) -> None:
        """Cuts the log files back to the `sizes` that `log_sizes` gave; files that are not listed to 0 bytes."""
        for name, size in self.log_sizes().items():
            if size > sizes.get(name, 0):
                os.truncate(self.path / name, sizes.get(name, 0))

    @property
    def id(self) -> str:
        """Identifies the checkpoints of this run; raises `UserError` as `read_info` does."""
        return self.read_info().get("id", "")

    def read_info(self, **needed: type) -> dict[str, Any]:
        """The content of run.json.

        Args:
            needed: the fields that the caller needs, and their types.

        Raises:
            UserError: it is damaged or of another version, or lacks such a field.
        """
        try:
            info = json_text.parse(read_file(self.info))
        except ValueError as error:
            raise UserError(f"not a JSON file ({error})", path=self.info) from None
        if not isinstance(info, dict) or info.get("version") != RUN_VERSION:
            raise UserError(f"not of version {RUN_VERSION}, which this release reads", path=self.info)
        for name, kind in needed.items():
            if not isinstance(info.get(name), kind):
                raise UserError(f"damaged: {name} is not a {kind.__name__}", path=self.info)
        return info


def _no_folder(path: Path) -> str:
    """What a path is that exists but is no folder."""
    if not path.is_symlink() or path.exists():
        return "not a folder"
    return f"a link to {os.readlink(path)}, which leads nowhere"


def save_model(model: "keras.Model", path: Path) -> None:
    """Writes a functional model without its optimizer, completely or not at all; raises `OSError`."""
    import keras

    bare = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    with atomic_path(path, ".keras") as temporary:  # Keras chooses the format by the suffix
        bare.save(temporary)
