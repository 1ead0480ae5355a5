"""Benchmarks and judges."""
