"""Trainers: one loop for every objective."""
