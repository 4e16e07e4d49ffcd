"""Checks every record of a folder of shards, and the files beside them."""

import sys

from kimagenet.commands.check_shards import main

if __name__ == "__main__":
    sys.exit(main())
