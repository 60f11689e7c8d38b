"""Execution of training steps: plans, autotuning, and faster kernels for CPUs."""
