"""Tables of runs for people to read."""
