"""Nuclei of HeLa cells in fluorescence microscopy (Fluo-N2DL-HeLa of the Cell Tracking Challenge)."""
