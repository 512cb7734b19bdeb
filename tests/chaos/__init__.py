"""Faults by chance on the running product: `make chaos` and `make soak`."""
