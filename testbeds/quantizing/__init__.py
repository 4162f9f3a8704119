"""Quantizing whole language models: texts to calibrate and measure on, and what a scheme costs in perplexity."""
