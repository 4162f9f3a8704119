"""The decoder, layer by layer, and what training methods and formats do to its weights."""
