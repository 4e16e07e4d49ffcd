"""Shards as they lie on a disk: records, index, dataset.json, corrupt records."""
