"""The plan carried out by NVIDIA DALI, on the GPU or the CPU from one graph, through the DALI TF plugin."""

import importlib
import importlib.util
import sys
from typing import Any

from pipelines.errors import first_line
from pipelines.loader import Unavailable

# TensorFlow must be there when the plugin is built.
_INSTALL = (
    "`pip install setuptools wheel packaging`, then `pip install --no-build-isolation "
    "'nvidia-dali-cuda120>=2.4,<2.5' 'nvidia-dali-tf-plugin-cuda120>=2.4,<2.5'`"
)
_REBUILD = (
    "`pip install setuptools wheel packaging`, then `pip install --no-build-isolation --no-cache-dir "
    "--force-reinstall --no-deps 'nvidia-dali-tf-plugin-cuda120>=2.4,<2.5'`"
)

_WITHOUT_DOCSTRINGS = 2  # sys.flags.optimize with -OO


def unavailable(device: str) -> Unavailable | None:
    """Why DALI cannot be used on a device, "cpu" or "gpu"; None if it can."""
    for module, package in (
        ("nvidia.dali", "nvidia-dali-cuda120"),
        ("nvidia.dali_tf_plugin", "nvidia-dali-tf-plugin-cuda120"),
    ):
        if not _is_installed(module):
            return Unavailable(f"package {package} is not installed", _INSTALL, is_missing=True)
    import tensorflow as tf

    try:
        importlib.import_module("nvidia.dali.plugin.tf")
    except tf.errors.NotFoundError:
        return Unavailable(f"DALI's TF plugin was built for another TensorFlow than {tf.__version__}", _REBUILD)
    except Exception as error:  # a foreign library may raise anything while it loads, and the user needs the remedy
        if sys.flags.optimize >= _WITHOUT_DOCSTRINGS:
            cause = f"DALI needs docstrings, which Python leaves out: {first_line(error)}"
            return Unavailable(cause, "run Python without -OO, and unset PYTHONOPTIMIZE")
        return Unavailable(f"DALI's TF plugin does not load: {first_line(error)}", _REBUILD)
    if device == "gpu" and not tf.config.list_physical_devices("GPU"):
        remedy = "`pip install 'tensorflow[and-cuda]' nvidia-npp-cu12` installs CUDA's libraries"
        return Unavailable("TensorFlow sees no GPU", remedy)
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def __getattr__(name: str) -> Any:
    """`LOADER`, on demand: the graph is importable without TensorFlow."""
    if name == "LOADER":
        from pipelines.loaders.dali.loader import DaliLoader

        return DaliLoader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
