"""Tests, and the tiny models that they share with the benchmarks."""
