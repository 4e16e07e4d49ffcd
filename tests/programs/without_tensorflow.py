"""Imports a module, and calls its `main` if there are more arguments.

Fails if that imports TensorFlow, Keras or DALI.
"""

import sys
from importlib import import_module

module = import_module(sys.argv[1])
if len(sys.argv) > 2:
    try:
        module.main(sys.argv[2:])
    except SystemExit as end:
        if end.code:
            raise
assert not {"tensorflow", "keras", "nvidia"} & set(sys.modules)
