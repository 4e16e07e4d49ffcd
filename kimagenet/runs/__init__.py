"""Run directories: files, checkpoints, logs, and a training that leaves them complete."""
