"""Steps d, e and f: loaders through TensorFlow, training on them, changes of epoch, memory, two devices on one GPU."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import estimate
from bench import machine as stamp
from bench.gpu.case import Settings
from bench.gpu.dali_alone import gpu_memory_mb, smi
from bench.memory import resident_megabytes
from bench.settings import stretched
from pipelines import loaders
from pipelines.augment import AugmentSpec
from pipelines.loader import BatchSpec, Loader
from pipelines.loaders.dali.host_time import dali_cpu_seconds, judge_host_decoding, mean_pixels
from pipelines.shards.shard_set import ShardSet
from pipelines.system.processes import cpu_count

Figures = Iterator[dict[str, Any]]
_LONG_EPOCH = 200_000  # images: few measurements reach its end
_PROFILED = 10  # steps
_HOST_DECODES = 650  # full decodes/s of one core: only the estimate for GPUs without JPEG engines uses it


def _tensorflow(settings: Settings) -> str:
    """Imports TensorFlow as a training does. Returns why a GPU cannot be used, "" if it can or none is asked for."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if settings.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return ""
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return "" if gpus else "TensorFlow sees no GPU"


def _open(settings: Settings, loader: str, device: str, batch: int, dtype: str, records: int = _LONG_EPOCH) -> Loader:
    shards = stretched(ShardSet.open(settings.dataset_dir, settings.split), records)
    spec = BatchSpec(batch, settings.image_size, dtype)
    return loaders.open_loader(loader, shards, spec, AugmentSpec.train(), device=device, strict=True)


def _endless(loader: Loader) -> Iterator[Any]:
    """Epoch after epoch."""
    for epoch in itertools.count():
        yield from loader.batches(epoch)


def reader(settings: Settings, *, loader: str, device: str = "", dtype: str = "float32", batch: int = 128) -> Figures:
    """Images/s of one loader, the host's CPU time, bytes from the device to the host, share of the paper estimate."""
    if problem := _tensorflow(settings):
        yield {"skipped": problem}
        return
    device = device or settings.device
    with _open(settings, loader, device, batch, dtype) as opened:
        batches = _endless(opened)
        labels = next(batches)[1]
        warm_until = time.perf_counter() + settings.seconds / 2
        while time.perf_counter() < warm_until:
            labels = next(batches)[1]
        labels.numpy()  # waits for the device
        images, cpu, dali_cpu, start = 0, time.process_time(), dali_cpu_seconds(), time.perf_counter()
        while time.perf_counter() - start < settings.seconds or not images:
            labels = next(batches)[1]
            images += batch
        labels.numpy()
        rate = images / (time.perf_counter() - start)
        cpu_ms, dali_cpu_ms = (
            1000 * (clock() - before) / images
            for clock, before in ((time.process_time, cpu), (dali_cpu_seconds, dali_cpu))
        )
        yield {"images_per_s": round(rate, 1), "host_cpu_ms": round(cpu_ms, 4), "dali_cpu_ms": round(dali_cpu_ms, 4)}
        if device == "gpu":
            found = judge_host_decoding(dali_cpu_ms, mean_pixels(opened.shards.sizes))
            yield {"gpu_memory_mb": gpu_memory_mb(), "host_decoding": found}
            yield _on_paper(opened.shards, settings, dtype, rate)
        copied = profiled_copies(lambda: next(batches))
        yield {"device_to_host_bytes_per_image": round(copied / (_PROFILED * batch), 1)}


def _on_paper(shards: ShardSet, settings: Settings, dtype: str, rate: float) -> dict[str, Any]:
    host_rate = float(_HOST_DECODES * cpu_count())
    found = estimate.for_device(smi(("name",)), stamp.describe(shards), settings.image_size, dtype, host_rate)
    if found is None:
        return {}
    return {"of_paper_estimate": round(rate / found[0], 3), "paper_limit": found[1]}


def profiled_copies(step: Callable[[], Any]) -> int:
    """Bytes that are copied from devices to the host in some steps, by TensorFlow's profiler."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="kimagenet-profile-") as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(_PROFILED):
            step()
        tf.profiler.experimental.stop()
        return sum(device_to_host_bytes(path.read_bytes()) for path in Path(folder).rglob("*.xplane.pb"))


def device_to_host_bytes(profile: bytes) -> int:
    """The sum over a serialized XSpace, TensorFlow's profile: events "MemcpyD2H" on the planes of GPUs."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    total = 0
    for plane in xplane_pb2.XSpace.FromString(profile).planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for event in (event for line in plane.lines for event in line.events):
            if "MemcpyD2H" in plane.event_metadata[event.metadata_id].name:
                total += _copied(plane, event)
    return total


def _copied(plane: Any, event: Any) -> int:
    """From the detail "kind_src:device kind_dst:pinned size:1024 dest:0 async:1"."""
    for stat in event.stats:
        if plane.stat_metadata[stat.metadata_id].name == "memcpy_details":
            details = stat.str_value or plane.stat_metadata[stat.ref_value].name
            fields = dict(part.split(":", 1) for part in details.split() if ":" in part)
            return int(fields.get("size", 0))
    return 0


def training(
    settings: Settings,
    *,
    model: str,
    loader: str,
    device: str = "",
    amp: str = "off",
    xla: bool = False,
    batch: int = 256,
    dtype: str = "float32",
) -> Figures:
    """Images/s of our own loop, and the share of the time that it waits for data."""
    if problem := _tensorflow(settings):
        yield {"skipped": problem}
        return
    import keras
    import tensorflow as tf

    from kimagenet import models
    from kimagenet.training.feed import open_feed
    from kimagenet.training.loop import Loop

    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy("float32" if amp == "off" else f"mixed_{amp}")
    shards = stretched(ShardSet.open(settings.dataset_dir, settings.split), _LONG_EPOCH)
    spec = BatchSpec(batch, settings.image_size, dtype)
    where, strategy = device or settings.device, tf.distribute.get_strategy()
    with open_feed(strategy, loader, shards, spec, AugmentSpec.train(), device=where, strict=True) as feed:
        network = models.build(model, shards.num_classes, settings.image_size)
        loop = Loop(network, keras.optimizers.SGD(1e-3, momentum=0.9), feed, xla=xla, log_steps=10**9)
        clock = make_clock(lambda: loop.totals, settings.seconds)
        began = time.perf_counter()
        loop.fit(1000, [clock])
        (_, cpu, first), (_, cpu_end, last) = clock.marks
        done = last - first
        yield {
            "images_per_s": round(done.images / done.seconds, 1),
            "data_wait": round(done.waited / done.seconds, 4),
            "host_cpu_ms": round(1000 * (cpu_end - cpu) / done.images, 4),
            "start_seconds": round(clock.marks[0][0] - began, 1),
        }
        if settings.device == "gpu":
            yield {"gpu_memory_mb": gpu_memory_mb()}


def make_clock(totals: Callable[[], Any], seconds: float) -> Any:
    """A callback that keeps (time, CPU time, totals) after the first steps and so many seconds later, then stops."""
    import keras

    class Clock(keras.callbacks.Callback):
        needs_every_loss = False

        def on_train_begin(self, logs: Any = None) -> None:
            self.marks: list[tuple[float, float, Any]] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            now, sums = time.perf_counter(), totals()
            if not self.marks and sums.images:  # the loop's warm-up is over
                self.marks.append((now, time.process_time(), sums))
            elif self.marks and now - self.marks[0][0] >= seconds:
                self.marks.append((now, time.process_time(), sums))
                self.model.stop_training = True

    return Clock()


def gradients(settings: Settings, *, model: str, batch: int = 16) -> Figures:
    """One step's loss and gradients on the GPU against the CPU's, in float32 without TF32."""
    if problem := _tensorflow(settings):
        yield {"skipped": problem}
        return
    import keras
    import tensorflow as tf

    from kimagenet import models

    tf.config.experimental.enable_tensor_float_32_execution(False)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (batch, settings.image_size, settings.image_size, 3)).astype(np.float32)
    labels = rng.integers(0, 10, batch)
    found: dict[str, list[np.ndarray]] = {}
    for place in ("/cpu:0", "/gpu:0" if settings.device == "gpu" else "/cpu:0"):
        with tf.device(place):
            keras.utils.set_random_seed(0)
            network = models.build(model, 10, settings.image_size)
            with tf.GradientTape() as tape:
                probabilities = network(tf.constant(images), training=False)
                loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, probabilities))
            grads = tape.gradient(loss, network.trainable_variables)
        side = "here" if "cpu" in found else "cpu"
        found[side] = [loss.numpy(), *(np.asarray(grad) for grad in grads)]
    pairs = list(zip(found["here"], found["cpu"], strict=True))
    differences = [float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-12) for a, b in pairs[1:]]
    yield {
        "loss_difference": float(abs(pairs[0][0] - pairs[0][1])),
        "gradient_difference_median": float(np.median(differences)),
        "gradient_difference_greatest": float(np.max(differences)),
    }


def first_batch(settings: Settings, *, batch: int = 128) -> Figures:
    """Seconds until the first batch, and the gap between two epochs in units of a step."""
    began = time.perf_counter()
    if problem := _tensorflow(settings):
        yield {"skipped": problem}
        return
    imported = time.perf_counter()
    steps = 8 if settings.short else 60
    with _open(settings, "dali", settings.device, batch, "float32", records=steps * batch) as loader:
        steps = loader.steps_per_epoch
        next(loader.batches(0))[1].numpy()
        first = time.perf_counter()
        yield {"tensorflow_s": round(imported - began, 2), "first_batch_s": round(first - imported, 2)}
        gaps: list[float] = []
        changes: list[float] = []
        last = time.perf_counter()
        for epoch in range(1, 3 if settings.short else 5):
            for step, parts in enumerate(loader.batches(epoch)):
                parts[1].numpy()
                now = time.perf_counter()
                (gaps if step else changes).append(now - last)
                last = now
        usual = float(np.mean(gaps))
        yield {"step_ms": round(1000 * usual, 2), "change_of_epoch_steps": round(float(np.median(changes)) / usual, 1)}


def memory(settings: Settings, *, epochs: int = 20, batch: int = 128, steps: int = 10) -> Figures:
    """Memory after each of many short epochs: the GPU's, in a rehearsal the process's. It must not grow after two."""
    if problem := _tensorflow(settings):
        yield {"skipped": problem}
        return
    seen: list[float | None] = []
    with _open(settings, "dali", settings.device, batch, "float32", records=steps * batch) as loader:
        for epoch in range(3 if settings.short else epochs):
            for parts in loader.batches(epoch):
                parts[1].numpy()
            seen.append(gpu_memory_mb() if settings.device == "gpu" else round(resident_megabytes()))
            yield {"memory_mb": seen}
    known = [value for value in seen if value is not None]
    if len(known) > 2:
        yield {"second_epoch_mb": known[1], "last_epoch_mb": known[-1], "growth_mb": known[-1] - known[1]}
    closed = gpu_memory_mb() if settings.device == "gpu" else round(resident_megabytes())
    yield {"closed_mb": closed}


def two_devices(settings: Settings, *, model: str, batch: int = 64, steps: int = 20) -> Figures:
    """MirroredStrategy over two TensorFlow devices on one GPU, or on the CPU: does it work, and what is copied?"""
    import keras
    import tensorflow as tf

    kind = settings.device.upper()
    physical = tf.config.list_physical_devices(kind)
    if not physical:
        yield {"skipped": f"TensorFlow sees no {kind}"}
        return
    total = float(smi(("memory.total",)) or 0)  # MiB; half is left to DALI
    limit = int(total / 4) if kind == "GPU" and total else None
    tf.config.set_logical_device_configuration(
        physical[0], [tf.config.LogicalDeviceConfiguration(memory_limit=limit) for _ in range(2)]
    )
    from kimagenet import models
    from kimagenet.training.feed import open_feed
    from kimagenet.training.steps import make_training_step

    strategy = tf.distribute.MirroredStrategy([f"/{settings.device}:0", f"/{settings.device}:1"])
    shards = stretched(ShardSet.open(settings.dataset_dir, settings.split), _LONG_EPOCH)
    steps = 6 if settings.short else steps
    spec = BatchSpec(batch, settings.image_size)
    augment = AugmentSpec.train()
    with open_feed(strategy, "dali", shards, spec, augment, device=settings.device, strict=True) as feed:
        with strategy.scope():
            network = models.build(model, shards.num_classes, settings.image_size)
            optimizer = keras.optimizers.SGD(1e-3)
            optimizer.build(network.trainable_variables)
        step = make_training_step(network, optimizer, strategy, feed.global_batch)
        batches = feed.epoch(0)
        losses = [float(step(*next(batches))[0]) for _ in range(steps)]
        yield {"steps": len(losses), "last_loss": losses[-1], "finite": bool(np.isfinite(losses).all())}
        began = time.perf_counter()
        copied = profiled_copies(lambda: step(*next(batches)))
        spent = time.perf_counter() - began
        yield {
            "images_per_s_while_profiled": round(_PROFILED * batch / spent, 1),
            "device_to_host_bytes_per_image": round(copied / (_PROFILED * batch), 1),
        }
