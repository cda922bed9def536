"""Generated scenes with a known truth: what the built-in demos train on and what tests measure against."""
