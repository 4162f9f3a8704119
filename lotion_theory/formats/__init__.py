"""Number formats: codebooks, scale rules, lattices, partitions, and the quantizer made of them."""
