"""Prints why DALI cannot be used when Python leaves docstrings out."""

from pipelines.loaders import dali

problem = dali.unavailable("cpu")
print("available" if problem is None else f"{problem.cause}\n{problem.remedy}")
