"""Recipes: the typed schema and its strict loading."""
