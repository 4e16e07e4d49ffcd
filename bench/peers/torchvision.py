"""torchvision's transforms on Pillow images in a DataLoader, as in PyTorch's ImageNet example.

It reads single records of the shards through their index. The images are a [B, S, S, 3] view.
"""

import io
from collections.abc import Iterator
from typing import Any

from bench.peers import Task, missing
from bench.reading import read_image

TITLE = "torchvision DataLoader"
AUGMENTS = ("full", "standard")


def unavailable() -> str | None:
    """Which of its packages is missing, or None."""
    absent = missing("torch", "torchvision")
    return f"{' and '.join(absent)} not installed (`pip install torch torchvision`)" if absent else None


def batches(task: Task) -> Iterator[Any]:
    """Batches of a DataLoader with `workers` processes, which persist over its epochs."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        RecordDataset(task),
        batch_size=task.batch_size,
        shuffle=True,
        num_workers=task.workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="spawn",  # a forked process would inherit TensorFlow's locks without its threads
    )
    while True:
        for images, labels in loader:
            yield images.permute(0, 2, 3, 1), labels.int()


class RecordDataset:
    """A map-style data set that repeats the records, so that its epochs are long."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.copies = -(-task.records // task.shards.num_records)
        self.transform: Any = None  # made in the worker

    def __len__(self) -> int:
        return self.copies * self.task.shards.num_records

    def __getitem__(self, position: int) -> Any:
        from PIL import Image

        shards = self.task.shards
        encoded, label = read_image(shards, position % shards.num_records)
        self.transform = self.transform or _transform(self.task)
        return self.transform(Image.open(io.BytesIO(encoded)).convert("RGB")), label


def _transform(task: Task) -> Any:
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
