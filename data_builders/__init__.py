"""Builders of preference data: one data set, one file."""
