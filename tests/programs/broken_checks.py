"""Prints argument 2 and last words on stderr, then ends as argument 1 says: "abort" or an exit code."""

import os
import sys

print(sys.argv[2], flush=True)
print("last words", file=sys.stderr)
if sys.argv[1] == "abort":
    os.abort()
sys.exit(int(sys.argv[1]))
