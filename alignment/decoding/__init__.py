"""Alignment without training: contrasts while decoding, and examples in the prompt."""
