"""Random lives of a port's caches: what is done to them, and what they offer."""
