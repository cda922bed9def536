"""Building footprints from aerial images, and rasters of any size."""
