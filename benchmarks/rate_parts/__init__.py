"""The parts of benchmarks/rate.py."""
