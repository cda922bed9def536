"""Scores: integer counts over a whole split (``counts``), turned into all that is reported (``split_scores``)."""
