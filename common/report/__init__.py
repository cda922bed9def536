"""What a run looks like: curves, example pictures and one self-contained page."""
