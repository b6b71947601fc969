"""What agents are told: prompts, the pool of communication formats, and scripted conversations."""
