"""Kernels for GPUs, in Triton, which is not a dependency: torch for GPUs brings it. Without a GPU, TRITON_INTERPRET=1 runs
them on tensors of the CPU, slowly."""
