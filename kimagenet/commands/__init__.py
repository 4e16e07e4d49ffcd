"""The command lines that make, check and show shards."""
