"""Writes a data set of shards as WebDataset tars or Parquet, so that other projects can use it."""

import sys

from kimagenet.commands.export_shards import main

if __name__ == "__main__":
    sys.exit(main())
