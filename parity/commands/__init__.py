"""The terminal: options, help, examples, and what a command gives to the outside."""
