"""Iterative reconstruction: the problem, the backends, the native solver's operators and algorithm, BART, Dask."""
