"""Images that are not 8 bit, through the commands."""

from tests.values import range_test

test_values = range_test("easy", "INSUMOS/ORTOFOTOS/*")
