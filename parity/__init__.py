"""The harness that judges whether a port of DeepSeek-V4 computes what the reference computes."""
