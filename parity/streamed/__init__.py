"""A checkpoint of any size, judged layer by layer in the memory of one: what `parity checkpoint` is made of."""
