"""From batches to updates: the loop, its steps, mixing, devices, recovery from corrupt records."""
