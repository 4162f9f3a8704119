"""What is computed of weights in blocks: alone, many together, or by compiled loops."""
