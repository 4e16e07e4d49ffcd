"""The loaders: each file or package in this folder that has `LOADER`, a class, and `unavailable(device)`.

`unavailable` returns an `Unavailable` if the loader cannot be used on a device ("cpu" or "gpu"), else None.
"""

import importlib
import logging
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from pipelines.augment import AugmentSpec
from pipelines.decoding import DecoderOptions
from pipelines.errors import UserError
from pipelines.loader import DEVICES, READ_AHEAD, BatchSpec, Loader, LoaderOptions, Unavailable
from pipelines.order.spec import ShuffleSpec
from pipelines.shards.shard_set import ShardSet
from pipelines.system.processes import cpu_count

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Which loader is taken, and why.

    Attributes:
        wanted: the name that was asked for, "auto" included.
        device: "cpu" or "gpu".
        loader: the name of the loader that is taken.
        problem: why the wanted loader ("auto" wants DALI) cannot be used; None if it can.
    """

    wanted: str
    device: str
    loader: str
    problem: Unavailable | None = None

    @property
    def is_fallback(self) -> bool:
        """Whether another loader replaces the wanted one."""
        return self.problem is not None


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
    read_ahead: int = READ_AHEAD,
    shuffle: ShuffleSpec | None = None,
    repeats: int = 1,
) -> Loader:
    """Opens a loader by name. The same arguments give the same batches from every loader.

    Args:
        name: one of `names()`, or "auto": DALI if it can be used, else tf.data. The choice is logged.
        shards: one split.
        batch: the shape of this rank's batches.
        augment: what is drawn for each record.
        seed: of the order and the draws, from 0.
        rank: which part of each global batch this loader reads, from 0.
        world_size: the number of ranks.
        workers: decoding threads; None means one for each core that this process may use.
        prefetch: batches that are kept ready.
        device: where DALI decodes: "cpu", "gpu", or "auto" for the GPU if TensorFlow sees one.
        gpu: which GPU, if there are several.
        decoder: settings of the GPU's decoder; None means the defaults.
        read_ahead: the most records that are fetched from storage before they are needed; 0: none.
        shuffle: how the records of training are shuffled; None means as the data set needs it.
        repeats: how often each record of a training batch occurs in it, with other draws; see `EpochPlan`.
        strict: if the loader cannot be used, raise `UserError` instead of taking tf.data with a warning.

    Returns:
        The loader. It has to be closed, or used in a `with` block.

    Raises:
        UserError: a name or value is wrong.
    """
    if name not in (*names(), "auto"):
        raise UserError(f"loader: {name!r} is not one of {', '.join((*names(), 'auto'))}", setting="loader")
    if device not in DEVICES:
        raise UserError(f"loader: device must be one of {', '.join(DEVICES)}, not {device!r}", setting="device")
    device = resolve_device(device)
    choice = choose(name, device, strict)
    if message := describe(choice):
        _log.warning(message)
    options = LoaderOptions(workers or cpu_count(), prefetch, device, gpu, decoder or DecoderOptions(), read_ahead)
    loader_class = _module(choice.loader).LOADER
    return loader_class(shards, batch, augment, seed, rank, world_size, options, shuffle, repeats)


def choose(name: str, device: str, strict: bool) -> Choice:
    """Chooses a loader.

    Args:
        name: as in `open_loader`.
        device: "cpu" or "gpu".
        strict: as in `open_loader`.

    Raises:
        UserError: `strict`, and the loader cannot be used.
    """
    wanted = "dali" if name == "auto" else name
    problem: Unavailable | None = _module(wanted).unavailable(device)
    if problem is None:
        return Choice(name, device, wanted)
    if strict and name != "auto":
        raise UserError(f"loader {name}: {problem.cause}", remedy=problem.remedy)
    return Choice(name, device, "tfdata", problem)


def describe(choice: Choice) -> str:
    """The choice in one line for the user; "" if the loader is the one that was asked for by name."""
    if choice.wanted == "auto":
        reason = f"{choice.loader}, because {choice.problem}" if choice.problem else f"dali on the {choice.device}"
        return f"loader auto: {reason}"
    return f"loader {choice.wanted}: {choice.problem}; reading with tf.data instead" if choice.problem else ""


def resolve_device(device: str) -> str:
    """Returns "cpu" or "gpu"; "auto" is the GPU if TensorFlow sees one."""
    if device != "auto":
        return device
    import tensorflow as tf

    return "gpu" if tf.config.list_physical_devices("GPU") else "cpu"


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
