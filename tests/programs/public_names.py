"""Looks up every public name of both packages; TensorFlow is imported no earlier than it is needed."""

import sys

import pytest

import kimagenet
import pipelines

assert kimagenet.models.recipes()
assert "tensorflow" not in sys.modules
for module in (kimagenet, pipelines):
    assert sorted(module.__all__) == module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None
with pytest.raises(AttributeError, match="nothing"):
    _ = kimagenet.nothing
