"""Programs that tests run in a new process: see `tests.helpers.programs`."""
