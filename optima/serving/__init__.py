"""vLLM servers, the client of their completions, and the scorer of base-model losses."""
