"""Decode steps in few kernels, for GPUs."""
