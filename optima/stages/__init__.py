"""The stages of an iteration, each a function of its inputs that returns what it made."""
