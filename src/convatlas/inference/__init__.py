"""Use a model: predict, evaluate, export, quantize, benchmark, verify, serve."""
