"""One short loop per method over shared stages; every stage resumes."""
