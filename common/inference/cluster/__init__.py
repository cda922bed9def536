"""Inference by several processes or machines on Dask distributed, imported only where a flag asks for it.

`connect.py` starts or joins a cluster, `units.py` is what its workers do, `plans.py` says which units an input needs,
`run.py` gives them out.
"""
