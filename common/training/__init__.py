"""Training: the loop, its state and schedule, the folder of a run and what is written into it at the end."""
