"""Builders on the small world: one builder, one file with its cases."""
