"""Benchmarks: one question per file, one timer for all of them. See README.md in this folder."""
