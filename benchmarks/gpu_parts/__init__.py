"""The parts of benchmarks/gpu.py: shapes and random weights, the measurements, and the tables that are made of them."""
