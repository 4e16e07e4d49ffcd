"""What the doctor checks."""
