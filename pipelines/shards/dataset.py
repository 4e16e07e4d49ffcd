"""dataset.json: what a folder of shards holds. Every number the original project hard-coded comes from here."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipelines.errors import UserError
from pipelines.system.files import write_atomic

DATASET_FILE = "dataset.json"
DATASET_VERSION = 1

# A plain file name: a hostile dataset.json must not lead out of its folder.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=255)]
Count = Annotated[int, Field(ge=0, lt=2**40)]


def shard_name(split: str, number: int, count: int) -> str:
    """The file name of shard `number` of `count`, as the original project's: train-00000-of-01024."""
    return f"{split}-{number:05d}-of-{count:05d}"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShardInfo(_Part):
    """One shard: its file name, records and bytes, and (if the builder wrote it) the CRC-32C of the file in hex."""

    file: FileName
    records: Annotated[int, Field(ge=1, lt=2**40)]
    bytes: Count
    crc32c: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")] | None = None


class SplitInfo(_Part):
    """One split. `sizes` names an int32 [N, 2] .npy file: height and width of each image, in record order."""

    shards: Annotated[list[ShardInfo], Field(min_length=1)]
    sizes: FileName
    quarantine: list[Count] = []  # record numbers in shard order, never planned

    @property
    def num_records(self) -> int:
        """Records in all shards, quarantined ones included."""
        return sum(shard.records for shard in self.shards)


class ClassInfo(_Part):
    """One class: the label of `classes[i]` is `i` after the label base is taken off."""

    name: str
    wnid: str | None = None


class DatasetInfo(_Part):
    """The content of dataset.json. `label_base` is the label of the first class in the records (the original: 1)."""

    version: int = DATASET_VERSION
    label_base: Annotated[int, Field(ge=0, lt=2**31)]
    classes: Annotated[list[ClassInfo], Field(min_length=1)]
    splits: dict[FileName, SplitInfo]
    build: dict[str, Any] = {}  # how the shards were made: seed, options, counts

    @property
    def num_classes(self) -> int:
        """How many classes the labels speak of."""
        return len(self.classes)

    def save(self, directory: Path) -> None:
        """Writes dataset.json, whole or not at all."""
        write_atomic(directory / DATASET_FILE, (self.model_dump_json(indent=1) + "\n").encode("utf-8"))

    @classmethod
    def load(cls, directory: Path) -> "DatasetInfo":
        """Reads and checks dataset.json; raises `UserError` naming the file, the field and the remedy."""
        path = directory / DATASET_FILE
        if not directory.is_dir():
            raise UserError(f"{directory}: no such folder; build shards with `python -m tools.build_shards`")
        try:
            text = path.read_bytes()
        except OSError as error:
            remedy = f"run `python -m tools.build_index {directory}` to index existing shards"
            if not any(directory.glob("*-of-*")):
                build = f"`python -m tools.build_shards --source {directory} --output DIR`"
                remedy = f"there are no shards; folders of images become some with {build}"
            raise UserError(f"{path}: {error.strerror}; {remedy}") from None
        try:
            info = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            remedy = f"remove the file and run `python -m tools.build_index {directory}`"
            raise UserError(f"{path}: {where}: {first['msg']}; {remedy}") from None
        if info.version != DATASET_VERSION:
            raise UserError(f"{path}: version {info.version} is not the version {DATASET_VERSION} of this release")
        return info
