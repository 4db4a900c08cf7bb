"""Renderings of a report; they know `parity.results` and nothing else."""
