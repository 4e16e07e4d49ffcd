"""The model file that a run begins from. The run keeps a copy, so it can be resumed if the file is gone or has changed.

The copy is `base/copy/` in the run directory: the file, and recipe.json and run.json of the run that it is from. It is
as far below run.json as a file of no run has to be, see `kimagenet.inference.trained.run_of`.
"""

import shutil
from pathlib import Path

from kimagenet.inference.fine_tuning import is_saved
from kimagenet.inference.trained import run_of
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines.system.files import atomic_folder


def find(run: RunDirectory, recipe: Recipe) -> Path | None:
    """The run's copy of the model file; None if it has none, or began from another file."""
    if not is_saved(recipe.model) or not run.is_begun:
        return None
    copy = _folder(run) / Path(recipe.model).name
    return copy if copy.is_file() and Recipe.load(run.recipe, quiet=True).model == recipe.model else None


def keep(run: RunDirectory, recipe: Recipe) -> None:
    """Copies the model file of a recipe into a run; does nothing for a network by name.

    Args:
        run: the run, before its recipe.json is written.
        recipe: of the run.

    Raises:
        OSError: the file cannot be read or the copy cannot be written.
    """
    if not is_saved(recipe.model):
        return
    model, folder = Path(recipe.model), _folder(run)
    origin = run_of(model)
    shutil.rmtree(run.base, ignore_errors=True)  # of another model, or of a begin that was killed
    run.base.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as copy:
        for file in (model, *((origin.recipe, origin.info) if origin else ())):
            shutil.copyfile(file, copy / file.name)


def _folder(run: RunDirectory) -> Path:
    return run.base / "copy"
