"""Holds no model."""
