"""The parts of benchmarks/labels.py."""
