"""An independent float64 NumPy implementation of what kimagenet.optim promises, and the small network it trains.

Used by test_optim.py and by the scripts that it starts. Imports no TensorFlow.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = list[NDArray[np.float64]]
Batch = tuple[NDArray[np.float64], NDArray[np.float64]]
Gradient = Callable[[Weights, Batch], Weights]

STEPS, BATCH, INPUTS, HIDDEN, OUTPUTS = 50, 12, 4, 6, 3


def start_weights() -> Weights:
    """kernel, bias, kernel, bias of a network with one tanh layer."""
    rng = np.random.default_rng(1)
    shapes = [(INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, OUTPUTS), (OUTPUTS,)]
    # float32 values, so that the network under test starts from exactly these.
    return [rng.normal(0, 0.5, shape).astype(np.float32).astype(np.float64) for shape in shapes]


def batches(steps: int = STEPS, size: int = BATCH) -> list[Batch]:
    """Inputs [size, 4] and targets [size, 3] of each step; targets are large, so that gradients need clipping."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(steps):
        x = rng.normal(0, 1, (size, INPUTS)).astype(np.float32).astype(np.float64)
        y = np.stack([x.sum(1), x[:, 0] * x[:, 1], np.sin(x[:, 2])], 1) + rng.normal(0, 0.3, (size, OUTPUTS))
        found.append((x, y.astype(np.float32).astype(np.float64)))
    return found


def micro_batches(whole: list[Batch], n: int) -> list[Batch]:
    """Each batch cut into n."""
    return [(x, y) for xs, ys in whole for x, y in zip(np.split(xs, n), np.split(ys, n), strict=True)]


def gradient(weights: Weights, batch: Batch) -> Weights:
    """Of the loss mean_i sum_j (p_ij − y_ij)²/2."""
    w1, b1, w2, b2 = weights
    x, y = batch
    hidden = np.tanh(x @ w1 + b1)
    error = (hidden @ w2 + b2 - y) / len(x)
    back = error @ w2.T * (1 - hidden**2)
    return [x.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]


@dataclass(frozen=True)
class Settings:
    """What is trained with. 0 or None switches a part off."""

    name: str = "sgd"
    rate: float = 0.05
    momentum: float = 0.0
    nesterov: bool = False
    epsilon: float = 1e-3
    decay: float = 0.0
    clip: float = 0.0
    ema: float = 0.0
    sync_period: int = 0
    slow_step_size: float = 0.5
    reset: bool = False
    iter_size: int = 1

    def replace(self, **changes: object) -> "Settings":
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


# Keras computes Adam's bias correction 1 − 0.999^t in float32, which costs 3e-5 of the rate in the first step: hence a
# small rate.
SETTINGS = {
    "sgd": Settings(),
    "momentum": Settings(momentum=0.9, rate=0.02),
    "nesterov": Settings(momentum=0.9, rate=0.02, nesterov=True),
    "adam": Settings("adam", rate=0.002),
    "adamw": Settings("adam", rate=0.002, decay=0.1),
    "rmsprop": Settings("rmsprop", rate=0.005),
}


class Inner:
    """sgd, adam and rmsprop as their papers and Keras' documentation define them, with decoupled decay and clipping."""

    def __init__(self, settings: Settings, weights: Weights) -> None:
        self.s = settings
        self.average = [w.copy() for w in weights]
        self.updates = 0
        self.renew(weights)

    def renew(self, weights: Weights) -> None:
        self.steps = 0
        self.first = [np.zeros_like(w) for w in weights]
        self.second = [np.zeros_like(w) for w in weights]

    def step(self, weights: Weights, grads: Weights) -> Weights:
        s = self.s
        if s.clip:
            norm = np.sqrt(sum((g**2).sum() for g in grads))
            grads = [g * min(1.0, s.clip / norm) for g in grads]
        if s.decay:
            weights = [w - s.rate * s.decay * w for w in weights]
        self.steps += 1
        self.updates += 1
        weights = [w + self.delta(i, g) for i, (w, g) in enumerate(zip(weights, grads, strict=True))]
        keep = s.ema if self.updates > 1 else 0.0
        self.average = [keep * a + (1 - keep) * w for a, w in zip(self.average, weights, strict=True)]
        return weights

    def delta(self, i: int, g: NDArray[np.float64]) -> NDArray[np.float64]:
        s = self.s
        if s.name == "sgd":
            self.first[i] = s.momentum * self.first[i] - s.rate * g
            return s.momentum * self.first[i] - s.rate * g if s.nesterov else self.first[i]
        if s.name == "rmsprop":
            self.second[i] = 0.9 * self.second[i] + 0.1 * g**2
            return -s.rate * g / np.sqrt(self.second[i] + s.epsilon)
        self.first[i] = 0.9 * self.first[i] + 0.1 * g
        self.second[i] = 0.999 * self.second[i] + 0.001 * g**2
        rate = s.rate * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        return -rate * self.first[i] / (np.sqrt(self.second[i]) + s.epsilon)


@dataclass
class Result:
    """Weights after the last step; slow ones are the weights themselves where there is no LookAhead."""

    weights: Weights
    slow: Weights
    average: Weights
    updates: int


def train(settings: Settings, data: list[Batch], gradient: Gradient = gradient) -> Result:
    """Trains on micro-batches; `iter_size` of them, averaged, make one update. A rest makes none."""
    weights = start_weights()
    slow = [w.copy() for w in weights]
    inner = Inner(settings, weights)
    for start in range(0, len(data) - settings.iter_size + 1, settings.iter_size):
        several = [gradient(weights, batch) for batch in data[start : start + settings.iter_size]]
        weights = inner.step(weights, [np.mean(g, axis=0) for g in zip(*several, strict=True)])
        if settings.sync_period and inner.updates % settings.sync_period == 0:
            weights = [p + settings.slow_step_size * (w - p) for p, w in zip(slow, weights, strict=True)]
            slow = [w.copy() for w in weights]
            if settings.reset:
                inner.renew(weights)
    return Result(weights, slow if settings.sync_period else weights, inner.average, inner.updates)


def distance(found: list[NDArray[np.float32]], expected: Weights) -> float:
    """The largest absolute difference."""
    return max(float(np.abs(f - e).max()) for f, e in zip(found, expected, strict=True))
