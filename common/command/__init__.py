"""Commands: their flags, from one dataclass each and a YAML file, and their exit codes.

Nothing here knows images or networks.
"""
