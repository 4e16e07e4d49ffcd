"""Draws the same records as each loader gives them, below the images as they are stored."""

import sys

from kimagenet.commands.preview import main

if __name__ == "__main__":
    sys.exit(main())
