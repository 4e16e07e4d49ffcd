"""Optimizers: Keras' own by name, and three wrappers that Keras lacks. Importing this imports TensorFlow.

Where they stand in one another: `IterSize(Lookahead(ClipGlobalNorm(inner)))`, a `LossScaleOptimizer` outside of all.
"""

from kimagenet.optim.build import build
from kimagenet.optim.clip import ClipGlobalNorm
from kimagenet.optim.iter_size import IterSize
from kimagenet.optim.lookahead import Lookahead
from kimagenet.optim.weights import evaluation_weights

__all__ = ["ClipGlobalNorm", "IterSize", "Lookahead", "build", "evaluation_weights"]
