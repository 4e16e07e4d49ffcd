"""Pillow without its limit against decompression bombs, which large cameras exceed, and without its warnings."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from PIL import Image

_lock = threading.Lock()
_threads = 0  # within the block
_settings = ExitStack()  # what the last thread to leave it puts back


@contextmanager
def without_limit_and_warnings() -> Iterator[None]:
    """Within it, Pillow opens images of any size, and nothing warns.

    Limit and warnings are settings of the process. So the first thread to enter changes them, and the last one to leave
    puts them back.
    """
    global _threads
    with _lock:
        if not _threads:
            _settings.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
            _settings.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _threads += 1
    try:
        yield
    finally:
        with _lock:
            _threads -= 1
            if not _threads:
                _settings.close()
