"""Decode steps in Triton kernels, for NVIDIA GPUs."""
