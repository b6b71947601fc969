"""Conversations: what one speaker sees, the turn loop, and thousands of them at once."""
