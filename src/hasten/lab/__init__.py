"""Finding out what is fast: workloads, benchmarks, claims, test models, planning."""
