"""Training in the second environment: jobs and their launch here, torch only in sft and score."""
