"""Networks: what a checkpoint holds, building and loading them, their parts that tasks share, their precision."""
