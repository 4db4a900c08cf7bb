"""A conversion against its original: what rounding of so many bits explains, and what it does not."""
