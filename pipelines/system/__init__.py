"""What the operating system gives: files, reading, memory, processes, progress."""
