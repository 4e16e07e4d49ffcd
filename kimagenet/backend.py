"""Keras' backend: the commands need TensorFlow, whatever Keras' settings say. Imports no Keras.

Keras looks at the environment variable KERAS_BACKEND, then at keras.json in the folder KERAS_HOME or ~/.keras.
"""

import json
import logging
import os
import sys
from pathlib import Path

from pipelines.errors import UserError

_log = logging.getLogger(__name__)

TENSORFLOW = "tensorflow"
_VARIABLE = "KERAS_BACKEND"


def use_tensorflow() -> None:
    """Makes Keras use TensorFlow when it is imported. One line says so if its settings file asks for another backend.

    Raises:
        UserError: the environment asks for another backend, or Keras was already imported with one.
    """
    wanted = os.environ.get(_VARIABLE) or TENSORFLOW
    if "keras" in sys.modules:
        wanted = sys.modules["keras"].config.backend()
    if wanted != TENSORFLOW:
        what = f"{_VARIABLE}={wanted}: this command needs TensorFlow"
        elsewhere = "in Python the loaders, the models and Keras' own optimizers work on every backend"
        raise UserError(what, remedy=f"`unset {_VARIABLE}`; {elsewhere}")
    settings = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")) / "keras.json"
    if _VARIABLE not in os.environ and (other := _backend_in(settings)) not in ("", TENSORFLOW):
        _log.warning("%s asks for the backend %s; this command uses TensorFlow", settings, other)
    os.environ[_VARIABLE] = TENSORFLOW  # also for the processes that this one starts


def _backend_in(settings: Path) -> str:
    """The backend that Keras' settings ask for, "" if they cannot be read: then Keras has its default, too."""
    try:
        return str(json.loads(settings.read_text(encoding="utf-8")).get("backend", ""))
    except (OSError, ValueError, AttributeError):
        return ""
