"""From files to files: windows, tiles, the networks on them, and products in bounded memory, resumable."""
