"""A checkpoint's model in one piece, where it fits: its continuations of prompts, and somebody else's port of it."""
