"""Inference by several processes or machines on Dask distributed, imported only where a flag asks for it.

`connect.py` starts or joins a cluster, `plans.py` says which units of work an input needs, `run.py` gives them out,
`units.py` is what is done in them, `worker.py` what a worker keeps from one to the next.
"""
