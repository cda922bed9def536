"""What all class maps agree on: the index that no pixel of a class has, and the type of a color."""

IGNORE = 255
"""Pixels that are not labeled: they count in no loss and in no score."""
NODATA = IGNORE
"""The same index in files: pixels outside of what the input shows."""
Color = tuple[int, int, int]
"""RGB, 0-255."""
