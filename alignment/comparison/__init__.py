"""What `alignment compare` runs: every method on one small world, and the papers' claims on it."""
