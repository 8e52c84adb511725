"""Faces rendered by the project, for when no dataset is at hand."""
