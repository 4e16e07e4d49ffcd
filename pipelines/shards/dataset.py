"""dataset.json: what a folder of shards holds. keras_imagenet had these numbers in its code."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipelines.errors import UserError
from pipelines.shards import records, remedies
from pipelines.shards.contents import look
from pipelines.system import json_text
from pipelines.system.files import write_own
from pipelines.system.reading import NotRegular, read_file

DATASET_FILE = "dataset.json"
DATASET_VERSION = 1
_SHUFFLED_MIXING = 0.75  # shuffled shards of a hundred records are above it

# A plain file name, so that a hostile dataset.json cannot name files outside its folder.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=255)]
Count = Annotated[int, Field(ge=0, lt=2**40)]


def shard_name(split: str, number: int, count: int) -> str:
    """The file name of shard `number` of `count`: train-00000-of-01024, as in keras_imagenet."""
    return f"{split}-{number:05d}-of-{count:05d}"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShardInfo(_Part):
    """One shard.

    Attributes:
        file: its name in the folder.
        records: how many records it has.
        bytes: its size.
        crc32c: CRC-32C of the file in hex; None if the builder did not write the shard.
    """

    file: FileName
    records: Annotated[int, Field(ge=1, lt=2**40)]
    bytes: Count
    crc32c: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")] | None = None


class SplitInfo(_Part):
    """One split.

    Attributes:
        shards: in the order in which records are numbered.
        sizes: name of the .npy file, int32 [N, 2], with the height and width of each image in record order.
        quarantine: numbers of the records that are never planned.
        mixing: how well the classes of neighbours are mixed: 0 if the shards are sorted by class, 1 if they are
            shuffled; see `pipelines.building.mixing`. None in data sets of earlier releases.
    """

    shards: Annotated[list[ShardInfo], Field(min_length=1)]
    sizes: FileName
    quarantine: list[Count] = []
    mixing: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @property
    def num_records(self) -> int:
        """Records in all shards, quarantined ones included."""
        return sum(shard.records for shard in self.shards)

    @property
    def is_sorted(self) -> bool:
        """Whether neighbours are of the same class more often than in shuffled shards."""
        return self.mixing is not None and self.mixing < _SHUFFLED_MIXING


class ClassInfo(_Part):
    """One class. The stored label of `classes[i]` is `label_base + i`.

    Attributes:
        name: for people.
        wnid: its WordNet id, if it has one.
    """

    name: str
    wnid: str | None = None


class Features(_Part):
    """The names of a record's features, which differ between writers.

    Attributes:
        image: the encoded image.
        label: its label.
        filename: the name of its file.
    """

    image: Annotated[str, Field(min_length=1)] = records.ENCODED
    label: Annotated[str, Field(min_length=1)] = records.LABEL
    filename: Annotated[str, Field(min_length=1)] = records.FILENAME


USUAL_FEATURES = Features()


class DatasetInfo(_Part):
    """The content of dataset.json.

    Attributes:
        version: of this format.
        label_base: the stored label of the first class; 1 in keras_imagenet's shards.
        classes: in label order.
        splits: by name.
        features: the names of the records' features; those of keras_imagenet are not written.
        build: how the shards were made: seed, options, counts.
    """

    version: int = DATASET_VERSION
    label_base: Annotated[int, Field(ge=0, lt=2**31)]
    classes: Annotated[list[ClassInfo], Field(min_length=1)]
    splits: dict[FileName, SplitInfo]
    features: Features = USUAL_FEATURES
    build: dict[str, Any] = {}

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def save(self, directory: Path) -> None:
        """Writes dataset.json in a folder, whole or not at all."""
        usual = {"features"} if self.features == USUAL_FEATURES else None
        text = self.model_dump_json(indent=1, exclude=usual) + "\n"
        write_own(directory / DATASET_FILE, text.encode("utf-8"))

    @classmethod
    def load(cls, directory: Path) -> "DatasetInfo":
        """Reads and checks dataset.json in a folder.

        Raises:
            UserError: the folder or the file is missing, or a field is wrong.
        """
        path = directory / DATASET_FILE
        if not directory.is_dir():
            remedy = f"build shards with {remedies.build_shards('FOLDER', directory)}"
            raise UserError("no such folder", path=directory, remedy=remedy)
        try:
            text = read_file(path)
        except FileNotFoundError:
            found = look(directory)
            what = f"no such file; the folder has {found.what}"
            raise UserError(what, path=path, remedy=found.remedy) from None
        except OSError as error:
            remedy = f"remove it and run {remedies.build_index(directory)}" if isinstance(error, NotRegular) else ""
            raise UserError(str(error.strerror), path=path, remedy=remedy) from None
        try:
            info = cls.model_validate_json(text)
            json_text.parse(text)  # refuses doubled keys, which pydantic takes
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            remedy = f"remove the file and run {remedies.build_index(directory)}"
            raise UserError(f"{where}: {first['msg']}", path=path, remedy=remedy) from None
        except ValueError as error:
            remedy = f"remove the file and run {remedies.build_index(directory)}"
            raise UserError(f"not a JSON file ({error})", path=path, remedy=remedy) from None
        if absent := _absent(info):
            remedy = f"copy it from a backup, or remove the file and run {remedies.build_index(directory)}"
            raise UserError(f"lacks {' and '.join(absent)}", path=path, remedy=remedy)
        if info.version != DATASET_VERSION:
            what = f"has version {info.version}, this release of kimagenet reads version {DATASET_VERSION}"
            raise UserError(what, path=path, remedy="use the release that wrote it")
        return info


def _absent(info: DatasetInfo) -> list[str]:
    """The fields that every release has written, and that a file lacks: without them damaged records would be read."""
    version = [] if "version" in info.model_fields_set else ["version"]
    without = [name for name, part in info.splits.items() if "quarantine" not in part.model_fields_set]
    return version + [f"splits.{name}.quarantine" for name in without]
