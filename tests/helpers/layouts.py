"""Writes the same images in every layout that `pipelines.building.sources` knows."""

import gzip
import io
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pipelines.building.sources import imagenet

# File name -> bytes; None is a folder of that name.
Files = Mapping[str, bytes | None]
# wnid -> files
Classes = Mapping[str, Files]


def tar(files: Iterable[tuple[str, bytes | None]]) -> bytes:
    """An uncompressed tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data or b""))
    return stream.getvalue()


def devkit(ids: Iterable[int]) -> bytes:
    """The parts of the official devkit that are read: the ground truth."""
    text = "".join(f"{number}\n" for number in ids).encode()
    folder = "ILSVRC2012_devkit_t12"
    truth = f"{folder}/data/ILSVRC2012_validation_ground_truth.txt"
    return gzip.compress(tar([(folder, None), (f"{folder}/readme.txt", b""), (truth, text)]))


def true_ids() -> list[int]:
    """A ground truth with ids that number the classes in another order."""
    ids = {wnid: (number * 7 + 489) % 1000 + 1 for number, wnid in enumerate(imagenet.wnids())}
    return [ids[wnid] for wnid in imagenet.validation_labels().values()]


def write_folder(folder: Path, files: Files) -> None:
    """Writes files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if data is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)


def class_folders(root: Path, train: Classes, validation: Classes) -> None:
    """train/<wnid>/, validation/<wnid>/."""
    for split, classes in (("train", train), ("validation", validation)):
        for wnid, files in classes.items():
            write_folder(root / split / wnid, files)


def flat_validation(root: Path, train: Classes, validation: Classes) -> None:
    """train/<wnid>/ and all validation images directly in val/."""
    class_folders(root, train, {})
    write_folder(root / "val", _merged(validation))


def official_tars(root: Path, train: Classes, validation: Classes) -> None:
    """The tars of ImageNet's site with classes and images in another order, and the devkit."""
    root.mkdir(parents=True)
    inner = [(f"{wnid}.tar", tar(reversed(files.items()))) for wnid, files in train.items()]
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar(reversed(inner)))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar(_merged(validation).items()))
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit(true_ids()))


def kaggle(root: Path, train: Classes, validation: Classes) -> None:
    """Kaggle's folders and tables."""
    base = root / "ILSVRC" / "Data" / "CLS-LOC"
    class_folders(base, train, {})
    write_folder(base / "val", _merged(validation))
    write_folder(base / "test", {"ILSVRC2012_test_00000001.JPEG": b""})
    rows = [
        f"{name.removesuffix('.JPEG')},{wnid} 1 2 30 40 {wnid} 5 6 7 8 "
        for wnid, files in validation.items()
        for name in files
    ]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")
    names = imagenet.class_names()
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} {names[wnid]}\n" for wnid in train))


def hugging_face(root: Path, train: Classes, validation: Classes) -> None:
    """Five compressed tars of train, one of validation."""
    for name, data in _hugging_face(train, validation).items():
        (root / "data").mkdir(parents=True, exist_ok=True)
        (root / "data" / f"{name}.gz").write_bytes(gzip.compress(data, compresslevel=1))


def hugging_face_plain(root: Path, train: Classes, validation: Classes) -> None:
    """The same tars, uncompressed, with names that begin with ./ as `tar c .` writes them."""
    write_folder(root, _hugging_face(train, validation, prefix="./"))


LAYOUTS: dict[str, Callable[[Path, Classes, Classes], None]] = {
    function.__name__: function
    for function in (class_folders, flat_validation, official_tars, kaggle, hugging_face, hugging_face_plain)
}


def _merged(classes: Classes) -> dict[str, bytes | None]:
    return {name: data for files in classes.values() for name, data in files.items()}


def _hugging_face(train: Classes, validation: Classes, prefix: str = "") -> dict[str, bytes]:
    images = {split: _suffixed(classes, prefix) for split, classes in (("train", train), ("val", validation))}
    tars = {f"train_images_{part}.tar": tar(images["train"][part::5]) for part in range(5)}
    return {**tars, "val_images.tar": tar(([(prefix, None)] if prefix else []) + images["val"])}


def _suffixed(classes: Classes, prefix: str) -> list[tuple[str, bytes | None]]:
    """a.JPEG of the class n01440764 becomes a_n01440764.JPEG."""
    return [
        (f"{prefix}{Path(name).stem}_{wnid}{Path(name).suffix}", data)
        for wnid, files in classes.items()
        for name, data in files.items()
    ]
