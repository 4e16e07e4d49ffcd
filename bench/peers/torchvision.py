"""torchvision's transforms on Pillow images in a DataLoader, as PyTorch's ImageNet example has them.

It reads the same shards through their index, one record at a time. Images come out as a [B, S, S, 3] view.
"""

import io
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bench.reading import read_image

if TYPE_CHECKING:
    from bench.peers import Task

TITLE = "torchvision DataLoader"
AUGMENTS = ("full", "standard")


def unavailable() -> str | None:
    """It is no dependency of ours."""
    missing = [package for package in ("torch", "torchvision") if find_spec(package) is None]
    return f"{' and '.join(missing)} not installed (`pip install torch torchvision`)" if missing else None


def batches(task: "Task") -> Iterator[Any]:
    """`workers` processes, started anew for each epoch of the loader unless they persist, as they do here."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        RecordDataset(task),
        batch_size=task.batch_size,
        shuffle=True,
        num_workers=task.workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="spawn",  # a fork would inherit TensorFlow's locks without its threads
    )
    while True:
        for images, labels in loader:
            yield images.permute(0, 2, 3, 1), labels.int()


class RecordDataset:
    """A map-style data set over the records, many times over, so that its epochs are long."""

    def __init__(self, task: "Task") -> None:
        self.task = task
        self.copies = -(-64_000 // task.shards.num_records)
        self.transform: Any = None  # made in the worker

    def __len__(self) -> int:
        return self.copies * self.task.shards.num_records

    def __getitem__(self, position: int) -> Any:
        from PIL import Image

        shards = self.task.shards
        encoded, label = read_image(shards, position % shards.num_records)
        self.transform = self.transform or _transform(self.task)
        return self.transform(Image.open(io.BytesIO(encoded)).convert("RGB")), label


def _transform(task: "Task") -> Any:
    from torchvision import transforms

    full = task.augment == "full"
    steps = [
        transforms.RandomResizedCrop(task.image_size, scale=(0.6 if full else 0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
    ]
    if full:
        steps.append(
            transforms.RandomApply(
                [transforms.RandomRotation(15, interpolation=transforms.InterpolationMode.BILINEAR)], 0.75
            )
        )
        steps.append(transforms.ColorJitter(brightness=32 / 255, saturation=0.5))
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
