"""Opens the models of a folder without kimagenet; prints how far each is from the outputs beside it.

Argument 1 is the folder: images.npy, and NAME.keras with NAME.npy for each model.
"""

import sys
from pathlib import Path

import keras
import numpy as np

folder = Path(sys.argv[1])
images = np.load(folder / "images.npy")
for path in sorted(folder.glob("*.keras")):
    got = keras.models.load_model(path)(images, training=False).numpy()
    print(path.stem, np.abs(got - np.load(path.with_suffix(".npy"))).max())
assert not any(name.split(".")[0] in ("kimagenet", "pipelines") for name in sys.modules)
