"""How fast is it, and against what limit? One question a file, one timer for all. See README.md in this folder."""
