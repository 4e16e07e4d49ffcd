"""Kinds of JPEGs that are stored as they are: mode of the image and options of Pillow's encoder."""

from typing import Any

JPEGS: dict[str, tuple[str, dict[str, Any]]] = {
    "4:2:0": ("RGB", {"subsampling": "4:2:0"}),
    "4:2:2": ("RGB", {"subsampling": "4:2:2", "optimize": True}),
    "4:4:4": ("RGB", {"subsampling": "4:4:4"}),
    "progressive": ("RGB", {"subsampling": "4:2:0", "progressive": True}),
    "progressive 4:4:4": ("RGB", {"subsampling": "4:4:4", "progressive": True}),
    "grey": ("L", {}),
    "grey progressive": ("L", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_blocks": 2}),
    "progressive restarts": ("RGB", {"restart_marker_rows": 1, "progressive": True}),
}
