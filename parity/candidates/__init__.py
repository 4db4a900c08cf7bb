"""Somebody else's code, kept on a leash: its process, its limits, and an adapter for each kind."""
