"""Rival methods, one file each: ``rounders`` quantize given weights, ``trainers`` train weights to be quantized."""
