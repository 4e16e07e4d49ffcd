"""The process of one turn: python -m bench.storage.candidate SPEC. `bench.storage.turns` starts it and talks to it."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from bench import peers
from bench.settings import Settings
from bench.storage.counts import Counts, read_counts
from bench.storage.turns import READY, RESULT, Turn, TurnSpec
from bench.timing import WARM_UP_SHARE, Candidate, cpu_seconds
from kimagenet import cli
from pipelines.shards.shard_set import ShardSet
from pipelines.system.standard_streams import take_stdout


def main() -> None:
    """Loads the libraries, waits for a line on stdin, measures and writes the result."""
    spec = TurnSpec(**json.loads(sys.argv[1]))
    out = take_stdout()
    cli.import_tensorflow()
    load_libraries(spec.candidate)
    print(READY, file=out, flush=True)
    if not sys.stdin.readline():
        return  # the bench has ended
    found = measure(spec)
    print(RESULT + json.dumps(vars(found)), file=out, flush=True)
    os._exit(0)  # without the end of TensorFlow's threads, which takes seconds


def load_libraries(candidate: str) -> None:
    """Imports what a candidate needs, so that it is not read through the limited disk."""
    if candidate in peers.names():
        peers.peer(candidate).unavailable()
        return
    from pipelines import loaders

    loaders.choose(candidate, "cpu", strict=False)


def measure(spec: TurnSpec) -> Turn:
    """Runs one candidate from opening the data set on.

    The turn ends after its seconds, or when the candidate has given as many images as there are records: after that,
    records would come from memory.
    """
    began = time.perf_counter()
    settings = Settings(
        ShardSet.open(spec.directory, spec.split),
        (spec.candidate,),
        batch_size=spec.batch_size,
        image_size=spec.image_size,
        workers=spec.workers,
        prefetch=spec.prefetch,
        device=spec.device,
        read_ahead=spec.read_ahead,
    )
    chosen = candidate_of(spec, settings)
    with closing(chosen.open()) as stream:
        left = len(settings.shards.usable) - next(stream)
        first_batch = time.perf_counter() - began
        left -= warm_up(stream, chosen.buffered, WARM_UP_SHARE * spec.seconds)
        counts, cpu, start = _counts(spec), cpu_seconds(), time.perf_counter()
        images, seconds = 0, 0.0
        while (seconds < spec.seconds and images < left) or not images:
            images += next(stream)
            seconds = time.perf_counter() - start
        spent = cpu_seconds() - cpu
        found = None if counts is None else read_counts(Path(spec.counter)) - counts
    numbers = (None, None) if found is None else (found.requests, found.num_bytes)
    return Turn(images, seconds, spent, first_batch, *numbers)


def candidate_of(spec: TurnSpec, settings: Settings) -> Candidate:
    """The candidate, with epochs of the data set's own records."""
    if spec.candidate in peers.names():
        return peers.candidate(spec.candidate, settings, spec.augment, records=1)
    return settings.candidate(spec.candidate, spec.candidate, spec.augment, records=1)


def warm_up(stream: Iterator[int], buffered: int, seconds: float) -> int:
    """Reads at least so many items and so many seconds; returns the number of images."""
    until = time.perf_counter() + seconds
    images = done = 0
    while done < buffered or time.perf_counter() < until:
        images += next(stream)
        done += 1
    return images


def _counts(spec: TurnSpec) -> Counts | None:
    return read_counts(Path(spec.counter)) if spec.counter else None


if __name__ == "__main__":
    main()
