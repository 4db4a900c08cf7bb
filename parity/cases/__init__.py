"""What is fed: drawn cases, recorded ones, and the calls in which tokens come."""
