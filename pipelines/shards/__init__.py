"""Shards on a disk: records, index, dataset.json, corrupt records."""
