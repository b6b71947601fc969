"""A run on disk: its directory and stages, their identity, what they hold and what they cost."""
