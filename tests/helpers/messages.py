"""Catches the messages of our packages, whether or not a command line has begun in this process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def messages(package: str, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """In the block `caplog` gets each message of a package once."""
    logger = logging.getLogger(package)
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)
        logger.propagate = before
