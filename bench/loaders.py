"""How close do our loaders get to the decode limit, and what does each augmentation cost?"""

from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

from bench import decode, estimate, machine
from bench.measurement import Measurement
from bench.settings import Settings
from bench.timing import Sample, rates, ratio_rounds, ratios, run_interleaved
from pipelines import AugmentSpec

_FULL = AugmentSpec.train()

# One augmentation each. Its cost is the difference to "none", which only resizes.
ALONE = {
    "crop": AugmentSpec(crop_area=_FULL.crop_area, crop_aspect=_FULL.crop_aspect),
    "flip": AugmentSpec(flip=_FULL.flip),
    "rotation": AugmentSpec(rotation=_FULL.rotation, rotation_probability=_FULL.rotation_probability),
    "brightness": AugmentSpec(brightness=_FULL.brightness),
    "contrast": AugmentSpec(contrast=(0.5, 1.5)),
    "saturation": AugmentSpec(saturation=_FULL.saturation),
    "hue": AugmentSpec(hue=18.0),
}


def measure(settings: Settings) -> Iterator[Measurement]:
    """Measures groups of candidates; the candidates of a group take turns with the decode limit."""
    for augment in settings.augments:
        for dtype in settings.dtypes:
            yield from _against_limit(settings, augment, dtype)
    real = [name for name in settings.loaders if name != "synthetic"]
    for name in real:
        yield from _price_of_rotation(settings, name)
    if not settings.short:
        for name in real:
            yield from _prices(settings, name)


def _against_limit(settings: Settings, augment: str, dtype: str) -> Iterator[Measurement]:
    candidates = [decode.limit(settings)]
    candidates += [settings.candidate(name, name, augment, dtype) for name in settings.loaders]
    if settings.second is not None:
        second = settings.replace(shards=settings.second)
        folder = settings.second.paths[0].parent.name
        candidates += [
            second.candidate(f"{name} over {folder}", name, augment, dtype)
            for name in settings.loaders
            if name != "synthetic"
        ]
    samples = run_interleaved(candidates, settings.rounds, settings.seconds)
    stamp = settings.stamp(augment=augment, dtype=dtype)
    yield from rates("loaders", samples, stamp)
    yield from ratios("loaders", samples, decode.LIMIT, stamp)
    if settings.device == "gpu" and "dali" in samples:
        yield from _against_estimate(settings, samples, dtype, stamp)


def _against_estimate(
    settings: Settings, samples: dict[str, list[Sample]], dtype: str, stamp: dict[str, Any]
) -> Iterator[Measurement]:
    """The rate of the GPU graph as a share of the estimate, for the GPUs that bench/estimate.py knows."""
    host_rate = median(sample.rate for sample in samples[decode.LIMIT])
    for gpu in machine.machine()["gpus"][:1]:
        estimated = estimate.for_device(gpu, machine.describe(settings.shards), settings.image_size, dtype, host_rate)
        if estimated is None:
            print(f"loaders: no estimate for a {gpu}; bench/estimate.py has {', '.join(estimate.GPUS)}")
            continue
        rate, resource = estimated
        share = tuple(sample.rate / rate for sample in samples["dali"])
        yield Measurement("loaders", f"dali, estimate, limited by {resource}", "images/s", (rate,), stamp)
        yield Measurement("loaders", "dali", "of the estimate on paper", share, stamp)


def _price_of_rotation(settings: Settings, loader: str) -> Iterator[Measurement]:
    """Full augmentation with and without rotation. Rotation also costs time because more of the image is decoded."""
    candidates = [
        settings.candidate("on", loader, _FULL),
        settings.candidate("off", loader, replace(_FULL, rotation=0.0, rotation_probability=0.0)),
    ]
    samples = run_interleaved(candidates, settings.rounds, settings.seconds)
    stamp = settings.stamp(loader=loader, dtype="float32")
    lost = [1 - ratio for ratio in ratio_rounds(samples["on"], samples["off"])]
    cpu = [on.cpu_ms / off.cpu_ms - 1 for on, off in zip(samples["on"], samples["off"], strict=True)]
    yield Measurement("loaders", f"{loader}: rotation", "of the rate lost", tuple(lost), stamp)
    yield Measurement("loaders", f"{loader}: rotation", "extra CPU time", tuple(cpu), stamp)


def _prices(settings: Settings, loader: str) -> Iterator[Measurement]:
    candidates = [settings.candidate("none", loader, "none")]
    candidates += [settings.candidate(name, loader, spec) for name, spec in ALONE.items()]
    samples = run_interleaved(candidates, settings.rounds, settings.seconds)
    stamp = settings.stamp(loader=loader, dtype="float32")
    for name in ALONE:
        lost = tuple(1 - ratio for ratio in ratio_rounds(samples[name], samples["none"]))
        yield Measurement("loaders", f"{loader}: {name} alone", "of the rate lost", lost, stamp)
