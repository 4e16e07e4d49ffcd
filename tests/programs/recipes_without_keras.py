"""Reads the recipes of all models, and prints which heavy modules that has imported."""

import sys

from kimagenet import models

models.names()
models.recipes()
models.reported()
print([name for name in ("tensorflow", "keras", "nvidia.dali") if name in sys.modules])
