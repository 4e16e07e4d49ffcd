"""Builds TFRecord shards, DALI indexes and dataset.json from tars or folders of images."""

import sys

from kimagenet.commands.build_shards import main

if __name__ == "__main__":
    sys.exit(main())
