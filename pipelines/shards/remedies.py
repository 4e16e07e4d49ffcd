"""What messages about shards tell the user to do. The commands are worded here only."""

import shlex
from pathlib import Path

REPLACE_SHARD = "copy or build the shard again"


def build_shards(source: Path | str, output: Path | str) -> str:
    """The command that builds shards from a folder of images."""
    return f"`python -m tools.build_shards --source {shlex.quote(str(source))} --output {shlex.quote(str(output))}`"


def build_index(directory: Path) -> str:
    """The command that writes indexes, image sizes and dataset.json for the shards in a folder."""
    return f"`python -m tools.build_index {shlex.quote(str(directory))}`"
