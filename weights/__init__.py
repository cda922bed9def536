"""The weights that ship, and the commands that make them again from generated scenes alone."""
