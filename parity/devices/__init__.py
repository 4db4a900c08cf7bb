"""How large a device's errors are, primitive by primitive: measured, so that no limit has to assume it."""
