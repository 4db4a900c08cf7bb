"""The same port on a second device, beside the CPU: which devices, with which limits, and what differs."""
