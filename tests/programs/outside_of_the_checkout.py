"""Imports the installed packages; prints where they are, and the models' names."""

import kimagenet
import pipelines  # noqa: F401
from kimagenet import models

print(kimagenet.__file__, *models.names())
