"""The jobs of the commands, each readable from top to bottom."""
