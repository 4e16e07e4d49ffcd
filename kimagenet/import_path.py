"""Functions of the user's own code, by import path: "my_package.my_module:function"."""

import importlib
import re
from collections.abc import Callable
from typing import Any

from pipelines.errors import UserError, first_line

_PATTERN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_import_path(name: str) -> bool:
    """Whether a name has the form "module:function"."""
    return _PATTERN.fullmatch(name) is not None


def load(path: str, setting: str) -> Callable[..., Any]:
    """Imports a function.

    Args:
        path: "module:function"; the module is searched for as by `import`, so also in the current folder.
        setting: the argument that has the path, for errors.

    Raises:
        UserError: the module cannot be imported, or has no such function.
    """
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # the user's code may raise anything
        what = f"{path}: the module cannot be imported ({type(error).__name__}: {first_line(error)})"
        raise UserError(what, setting=setting) from error
    if not callable(function):
        raise UserError(f"{path}: the module has no function {name}", setting=setting)
    return function
