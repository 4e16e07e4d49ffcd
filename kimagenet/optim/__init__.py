"""Optimizers: Keras' own by name, and three wrappers that Keras does not have. Importing this imports TensorFlow.

The order of the wrappers is `IterSize(Lookahead(ClipGlobalNorm(inner)))`, with a `LossScaleOptimizer` around all.

    optimizer = kimagenet.optim.Lookahead(keras.optimizers.Adam(1e-2), sync_period=5, slow_step_size=0.5)
"""

from kimagenet.optim.build import build
from kimagenet.optim.clip import ClipGlobalNorm
from kimagenet.optim.iter_size import IterSize
from kimagenet.optim.lookahead import Lookahead
from kimagenet.optim.weights import evaluation_weights

__all__ = ["ClipGlobalNorm", "IterSize", "Lookahead", "build", "evaluation_weights"]
