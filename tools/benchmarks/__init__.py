"""The measuring core of the benchmarks, and the cases of each bundle."""
