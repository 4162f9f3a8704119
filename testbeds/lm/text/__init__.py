"""Texts as tokens: tokenizers, token files and what they are made from, and which sequences a step sees."""
