"""What does each wrapper of kimagenet.optim cost per call, compared with the bare optimizer, for ResNet50's weights?

    python -m bench.optimizers --output FILE.json [--rounds 15]

First the optimizers alone: gradients are constants and no network is computed. The optimizer is called in a graph, as
in the training step. Then, for momentum, whole training steps of ResNet50 on a few small images that do not change.
Candidates take turns of 20 calls, a multiple of both cycles (5 for Lookahead, 4 for IterSize). The ratio compares a
turn with the bare optimizer's turn of the same round. "bare again" is the bare optimizer a second time: the noise.

A call of IterSize is compared with a call of the bare optimizer on the same micro-batch, which is what a run without
iter_size does with the same images. "iter_size 4" is the mean of its cycle of three collecting calls and one updating
call; both kinds are also listed separately. CPU time counts all threads; on a shared machine it varies less than wall
time.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.measurement import Measurement, Result
from bench.tables import tables
from bench.timing import rotations
from kimagenet import cli

QUESTION = "optimizers"
CALLS, CYCLE, WARM_UP = 20, 4, 8
STEP_IMAGES, STEP_PIXELS = 8, 64  # few and small, so that the optimizer is a large share of a training step


@dataclass(frozen=True)
class Turn:
    """One turn of a candidate.

    Attributes:
        wall: milliseconds of wall time of each call.
        cpu: milliseconds of CPU time of each call.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def only(self, phase: str) -> "Turn":
        """The calls of a phase of IterSize's cycle: "collect", "update" or "all"."""
        picked = [i for i in range(len(self.wall)) if phase == "all" or (i % CYCLE == CYCLE - 1) == (phase == "update")]
        return Turn(tuple(self.wall[i] for i in picked), tuple(self.cpu[i] for i in picked))


def weight_shapes() -> list[tuple[int, ...]]:
    """The shapes of ResNet50's 214 trainable weights, 25.6 million numbers."""
    import keras

    return [tuple(v.shape) for v in keras.applications.ResNet50(weights=None).trainable_variables]


def candidate(optimizer: Any, gradients: Sequence[Any]) -> Callable[[], Any]:
    """Makes a function that applies the optimizer to new weights; it is called WARM_UP times, a multiple of its cycle.

    Args:
        optimizer: a Keras optimizer.
        gradients: one tensor for each weight, of the weight's shape.
    """
    import keras
    import tensorflow as tf

    weights = [keras.Variable(tf.random.stateless_normal(g.shape, seed=(1, 2))) for g in gradients]
    optimizer.build(weights)
    # Gradients are arguments because TensorFlow might fold constants of the graph.
    step = tf.function(lambda *gradients: optimizer.apply(list(gradients), weights))
    for _ in range(WARM_UP):
        step(*gradients)
    return lambda: step(*gradients)


def training_candidate(optimizer: Any) -> Callable[[], Any]:
    """Makes a function that runs a training step of a new ResNet50: forward, backward and the optimizer."""
    import tensorflow as tf

    from kimagenet import models
    from kimagenet.training.steps import make_training_step

    model = models.build("resnet50", image_size=STEP_PIXELS)
    optimizer.build(model.trainable_variables)
    step = make_training_step(model, optimizer, tf.distribute.get_strategy(), STEP_IMAGES)
    images = tf.random.stateless_normal((STEP_IMAGES, STEP_PIXELS, STEP_PIXELS, 3), seed=(5, 6))
    labels = tf.range(STEP_IMAGES)
    for _ in range(WARM_UP):
        step(images, labels)
    return lambda: step(images, labels)


def turn(call: Callable[[], Any]) -> Turn:
    """Calls a function CALLS times and times each call."""
    wall, cpu = [], []
    for _ in range(CALLS):
        before, cpu_before = time.perf_counter(), time.process_time()
        call()
        wall.append(1000 * (time.perf_counter() - before))
        cpu.append(1000 * (time.process_time() - cpu_before))
    return Turn(tuple(wall), tuple(cpu))


def wrappers(name: str) -> dict[str, Any]:
    """The bare optimizer, twice, and each wrapper around it; `name` is "momentum" or "adam"."""
    import keras

    from kimagenet import optim

    def bare() -> Any:
        return keras.optimizers.SGD(1e-3, momentum=0.9) if name == "momentum" else keras.optimizers.Adam(1e-3)

    return {
        "bare": bare(),
        "bare again": bare(),
        "lookahead": optim.Lookahead(bare()),
        "iter_size 4": optim.IterSize(bare(), CYCLE),
        "clip": optim.ClipGlobalNorm(bare(), 1.0),
    }


def measure(name: str, rounds: int) -> list[Measurement]:
    """Measures calls and memory of all wrappers around one inner optimizer ("momentum" or "adam")."""
    import tensorflow as tf

    gradients = [tf.random.stateless_normal(shape, seed=(3, 4), stddev=1e-3) for shape in weight_shapes()]
    optimizers = wrappers(name)
    found = take_turns(name, {k: candidate(optimizer, gradients) for k, optimizer in optimizers.items()}, rounds)
    weights = sum(g.shape.num_elements() for g in gradients)
    for wrapper in ("lookahead", "iter_size 4"):
        own = sum(v.shape.num_elements() for v in optimizers[wrapper].variables)
        own -= sum(v.shape.num_elements() for v in optimizers["bare"].variables)
        found.append(Measurement(QUESTION, f"{name}: {wrapper}, memory", "of the weights", (own / weights,)))
    return found


def measure_training(name: str, rounds: int) -> list[Measurement]:
    """Measures whole training steps with all wrappers around one inner optimizer."""
    calls = {wrapper: training_candidate(optimizer) for wrapper, optimizer in wrappers(name).items()}
    return take_turns(f"{name}, training step of {STEP_IMAGES} × {STEP_PIXELS} px", calls, rounds)


def take_turns(title: str, calls: dict[str, Callable[[], Any]], rounds: int) -> list[Measurement]:
    """Times candidates in turns; those of IterSize by the phase of its cycle too.

    Args:
        title: the first part of the measurements' names.
        calls: the candidates by name; "bare" is the one to compare with.
        rounds: turns of each candidate.
    """
    turns: dict[str, list[Turn]] = {wrapper: [] for wrapper in calls}
    for order in rotations(list(calls), rounds):
        for wrapper in order:
            turns[wrapper].append(turn(calls[wrapper]))
    found = []
    for wrapper, samples in turns.items():
        phases = ("all", "collect", "update") if wrapper.startswith("iter_size") else ("all",)
        for phase in phases:
            label = f"{title}: {wrapper}" + ("" if phase == "all" else f", {phase}")
            found += compare(label, [s.only(phase) for s in samples], turns["bare"])
    return found


def compare(label: str, samples: Sequence[Turn], bare: Sequence[Turn]) -> list[Measurement]:
    """Measurements of milliseconds per call and of the ratio to the bare optimizer's turn of the same round."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    wall, cpu = [mean(s.wall) for s in samples], [mean(s.cpu) for s in samples]
    wall_ratio = [w / mean(b.wall) for w, b in zip(wall, bare, strict=True)]
    cpu_ratio = [c / mean(b.cpu) for c, b in zip(cpu, bare, strict=True)]
    return [
        Measurement(QUESTION, label, "ms/call", tuple(wall)),
        Measurement(QUESTION, label, "of bare", tuple(wall_ratio)),
        Measurement(QUESTION, label, "CPU ms/call", tuple(cpu)),
        Measurement(QUESTION, label, "CPU of bare", tuple(cpu_ratio)),
    ]


def make_parser() -> cli.Parser:
    """The flags."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = cli.Parser("python -m bench.optimizers", "--output FILE.json [flags]", summary)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE.json", help="result file")
    add("--rounds", type=cli.positive_int, default=15, metavar="N", help="turns of each candidate (default: 15)")
    add("--training-rounds", type=cli.positive_int, default=5, metavar="N", help="turns of training steps (default: 5)")
    return parser


def measure_all(flags: argparse.Namespace) -> None:
    """Measures all wrappers, prints a table and writes the result file."""
    measurements = [m for name in ("momentum", "adam") for m in measure(name, flags.rounds)]
    measurements += measure_training("momentum", flags.training_rounds)
    load = os.getloadavg()[1]
    print(tables(measurements))
    rounds = f"--rounds {flags.rounds} --training-rounds {flags.training_rounds}"
    Result(
        command=f"python -m bench.optimizers --output {flags.output.name} {rounds}",
        date=machine.date(),
        commit=machine.commit(),
        machine=machine.machine() | {"load_average_5_min": round(load, 1)},
        versions=machine.versions(),
        dataset={},
        measurements=tuple(measurements),
    ).save(flags.output)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), measure_all, arguments)


if __name__ == "__main__":
    sys.exit(main())
