"""How numbers become a verdict."""
