"""Dialogue trees: how they grow, and the preference pairs read from them (paper Alg. 4, 5)."""
