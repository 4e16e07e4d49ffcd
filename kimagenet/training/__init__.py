"""From batches to optimizer steps: the loop, its steps, mixing, devices, recovery from corrupt records."""
