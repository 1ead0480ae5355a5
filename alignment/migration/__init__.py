"""Recipes from the configurations of other projects."""
