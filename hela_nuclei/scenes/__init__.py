"""Generated microscope frames with known nuclei, for the demo and the tests."""
