"""Philox4x32-10, the counter-based generator of Salmon et al. 2011 (Random123), written with operators only.

All words are 32-bit values held in 64-bit *signed* integers, so the same lines run on python ints, numpy ``int64``
arrays, torch ``int64`` tensors and ``numba.njit`` scalars. A 32x32-bit product may wrap a signed 64-bit integer; its
bits are still those of the true product, so the low word is ``p & MASK`` and the high word ``(p >> 32) & MASK``, where
the mask removes the copies of the sign bit that an arithmetic shift brings in. (On numpy *scalars* a wrapped product
warns; use arrays or python ints.)
"""

MASK = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85  # golden ratio and sqrt(3) - 1, as fractions of 2**32

UNIT24 = 2.0**-24
UNIT53 = 2.0**-53


def low32(x):
    """Low 32 bits of ``x``."""
    return x & MASK


def high32(x):
    """Bits 32 to 63 of ``x``."""
    return (x >> 32) & MASK


def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four random words for the counter ``(c0, c1, c2, c3)`` under the key ``(k0, k1)``; all words in [0, 2**32).

    One round multiplies two of the words, swaps the halves of the products across and mixes the key in; between rounds
    the key moves by a Weyl sequence (section 3 of the paper). It calls no other function, so that ``numba.njit`` takes
    it as it stands.
    """
    for _ in range(ROUNDS):
        p0 = c0 * MULTIPLIER_0
        p1 = c2 * MULTIPLIER_1
        c0 = ((p1 >> 32) & MASK) ^ c1 ^ k0
        c2 = ((p0 >> 32) & MASK) ^ c3 ^ k1
        c1 = p1 & MASK
        c3 = p0 & MASK
        k0 = (k0 + WEYL_0) & MASK
        k1 = (k1 + WEYL_1) & MASK
    return c0, c1, c2, c3


def top24(w0, w1, w2, w3):
    """Four numbers of 24 bits, the upper ones of each word. Times :data:`UNIT24` they are exact in float32, at most
    1 - 2**-24."""
    return w0 >> 8, w1 >> 8, w2 >> 8, w3 >> 8


def top53(w0, w1, w2, w3):
    """Two numbers of 53 bits: the upper 27 of ``w0`` above the upper 26 of ``w1``, and ``w2`` above ``w3`` likewise.
    Times :data:`UNIT53` they are exact in float64, at most 1 - 2**-53."""
    return ((w0 >> 5) << 26) | (w1 >> 6), ((w2 >> 5) << 26) | (w3 >> 6)
