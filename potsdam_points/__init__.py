"""ISPRS Potsdam land cover from sparse points."""
