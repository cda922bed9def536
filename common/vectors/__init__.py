"""Polygons: from class maps (``polygonize``), onto grids (``burn``), into files of a GIS (``write``)."""
