"""The core: groups, packing, log-probs, scoring."""
