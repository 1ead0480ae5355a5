"""Tools for data sets of prompts and responses: one tool, one file."""
