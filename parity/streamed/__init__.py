"""A checkpoint of any size, judged block by block in the memory of one: what `parity checkpoint` is made of."""
