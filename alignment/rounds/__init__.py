"""Rounds of generate, build, train and evaluate, in which each model makes the next one's data."""
