"""Pictures and rasters: reading files of any kind, values as 0-1, pixels on the ground, writing results, showing them.

``gdal`` and ``pictures`` decode, ``rasters`` chooses between them, ``ranges`` maps values to 0-1, ``write`` is the way
back, ``grids`` knows where pixels lie, ``display`` makes them visible.
"""
