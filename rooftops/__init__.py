"""Rooftops on aerial pictures: DeepLabV3+."""
