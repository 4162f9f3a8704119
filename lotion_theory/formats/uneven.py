"""The sixteen uneven levels of GGUF's IQ4_NL, denser towards 0."""

from fractions import Fraction

from .codebooks import Codebook, register_codebook

_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

register_codebook(
    Codebook(
        "iq4nl", tuple(map(Fraction, _LEVELS)), (True, False) * 8, 4, "levels of GGUF IQ4_NL, -127 to 113, no zero"
    )
)
