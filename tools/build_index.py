"""Makes what loaders need for shards that exist: a DALI index for each, image sizes and dataset.json."""

import sys

from kimagenet.commands.build_index import main

if __name__ == "__main__":
    sys.exit(main())
