"""Helpers around the operating system: files, reading, time limits, memory, processes, progress."""
