"""Starts two workers that wait for ten minutes, and prints "working" for each task that ends."""

import time

from pipelines.system.processes import run_tasks

if __name__ == "__main__":
    for _ in run_tasks(time.sleep, [0, 0, 600, 600], 2):
        print("working", flush=True)
