"""The page for clicking points: pictures as tiles, points on disk, a network that learns from them, suggestions.

``store`` keeps the points, ``tiles`` cuts pictures of any size, ``learner`` trains and predicts in the background,
``suggest`` chooses the next points, ``server`` answers the page in ``page/``.
"""
