"""Permeable and sealed ground on national orthophotos: eight architectures, georeferenced data."""
