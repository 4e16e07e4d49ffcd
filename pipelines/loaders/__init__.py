"""The loaders, found by looking into this folder: each file has `LOADER`, a class, and `unavailable(device)`."""

import importlib
import logging
import pkgutil

from pipelines.augment import AugmentSpec
from pipelines.decoding import DecoderOptions
from pipelines.errors import UserError
from pipelines.loader import DEVICES, BatchSpec, Loader, LoaderOptions
from pipelines.shards.shard_set import ShardSet
from pipelines.system.processes import cpu_count

_log = logging.getLogger(__name__)


def names() -> tuple[str, ...]:
    """The names that `open_loader` takes, besides "auto"."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def open_loader(
    name: str,
    shards: ShardSet,
    batch: BatchSpec,
    augment: AugmentSpec,
    *,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    prefetch: int = 2,
    device: str = "auto",
    gpu: int = 0,
    strict: bool = False,
    decoder: DecoderOptions | None = None,
) -> Loader:
    """Opens a loader by name; the same arguments give the same batches from every loader.

    Args:
        name: one of `names()`, or "auto": DALI where it loads, else tf.data; the choice is logged.
        batch: per rank. rank, world_size: which part of each global batch this loader reads.
        workers: decoding threads; None: one for each core this process may use.
        device: where DALI decodes: "cpu", "gpu", or "auto" for the GPU where TensorFlow sees one. gpu: which GPU.
        decoder: settings of the GPU's decoder; None: the defaults.
        strict: if DALI cannot be used, raise `UserError` instead of taking tf.data with a warning.

    Raises `UserError` for a wrong name or value.
    """
    if name not in (*names(), "auto"):
        raise UserError(f"loader: {name!r} is not one of {', '.join((*names(), 'auto'))}")
    if device not in DEVICES:
        raise UserError(f"loader: device is one of {', '.join(DEVICES)}, not {device!r}")
    device = resolve_device(device)
    chosen, reason = choose(name, device, strict)
    if reason:
        _log.warning(reason)
    options = LoaderOptions(workers or cpu_count(), prefetch, device, gpu, decoder or DecoderOptions())
    loader_class = _module(chosen).LOADER
    return loader_class(shards, batch, augment, seed, rank, world_size, options)


def choose(name: str, device: str, strict: bool) -> tuple[str, str | None]:
    """The loader to take on a device, "cpu" or "gpu", and what to tell the user about it; see `open_loader`."""
    wanted = "dali" if name == "auto" else name
    problem = _module(wanted).unavailable(device)
    if name == "auto":
        if problem:
            return "tfdata", f"loader auto: tfdata, since {problem}"
        return "dali", f"loader auto: dali on the {device}"
    if problem is None:
        return name, None
    if strict:
        raise UserError(f"loader {name}: {problem}")
    return "tfdata", f"loader {name}: {problem}; reading through tf.data instead"


def resolve_device(device: str) -> str:
    """ "auto" as "gpu" where TensorFlow sees one, else as "cpu"."""
    if device != "auto":
        return device
    import tensorflow as tf

    return "gpu" if tf.config.list_physical_devices("GPU") else "cpu"


def _module(name: str):
    return importlib.import_module(f"{__name__}.{name}")
