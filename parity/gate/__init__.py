"""Judging somebody's port: the matrix of probes and schedules, the diagnosis, what is found."""
