"""Structured rotations against the dense matrices they stand for."""

import math

import numpy as np
import pytest
from scipy.linalg import block_diag, hadamard

from lotion_theory import Stream
from testbeds.problems.rotations import Dense, Hadamard, Identity, Mixing, walsh_hadamard
from tests.tolerances import standard_error_bound

STREAM = Stream(3, "rotations")


def _signs(size):
    return np.random.default_rng(size).choice([-1.0, 1.0], size)


ROTATIONS = {
    "identity": Identity(7),
    "hadamard": Hadamard(24, 4, _signs(24)),
    "hadamard, unsigned": Hadamard(24),
    "hadamard, whole": Hadamard(256, signs=_signs(256)),
    "dense": Dense.haar(9, STREAM),
    "blocks": Dense.haar(12, STREAM, block=3),
    **{f"mixing {size}": Mixing(size, STREAM) for size in (1, 2, 3, 6, 17, 32, 33, 48, 100)},
}
every = pytest.mark.parametrize("name", ROTATIONS)


def _matrix(rotation):
    return rotation.apply(np.eye(rotation.size)).T


def _transform(size):
    return hadamard(size) / math.sqrt(size)


def _expected(rotation):
    """The matrix, written out."""
    size = rotation.size
    if isinstance(rotation, Identity):
        return np.eye(size)
    if isinstance(rotation, Dense):
        return block_diag(*rotation.matrices)
    if isinstance(rotation, Hadamard):
        return np.kron(np.eye(size // rotation.block), _transform(rotation.block)) * rotation.signs
    power = 2 ** int(math.log2(size))
    first = block_diag(_transform(power), np.eye(size - power))
    last = block_diag(np.eye(size - power), _transform(power)) if size > power else np.eye(size)
    matrix = np.eye(size)
    for order, _, before, between in rotation._rounds:
        signs = np.diag(between) if size > power else np.eye(size)
        matrix = last @ signs @ first @ np.diag(before) @ np.eye(size)[order] @ matrix
    return matrix


# Matrices of orthogonal maps: at most ten passes of sums of at most 256 terms no larger than one, each good to 2^-53.
SMALL = 1e-13


@every
def test_equals_its_matrix(name):
    rotation = ROTATIONS[name]
    matrix = _matrix(rotation)
    assert np.abs(matrix - _expected(rotation)).max() < SMALL
    assert np.abs(matrix @ matrix.T - np.eye(rotation.size)).max() < SMALL
    assert np.abs(rotation.transpose(np.eye(rotation.size)) - matrix).max() < SMALL


@every
@pytest.mark.parametrize("leading", [(), (0,), (1,), (3,), (2, 5)])
def test_works_on_the_last_axis(name, leading):
    rotation = ROTATIONS[name]
    x = np.random.default_rng(0).normal(size=(*leading, rotation.size))
    before = x.copy()
    y = rotation.apply(x)
    size = SMALL * math.sqrt(rotation.size) * 5
    assert y.shape == x.shape
    assert np.allclose(y, x @ _expected(rotation).T, rtol=0, atol=size)
    assert np.allclose(rotation.transpose(y), x, rtol=0, atol=size)
    assert (x == before).all()


@every
def test_diagonal_is_that_of_the_rotated_spectrum(name):
    rotation = ROTATIONS[name]
    spectrum = np.random.default_rng(1).exponential(size=rotation.size)
    matrix = _expected(rotation)
    dense = (matrix * spectrum) @ matrix.T
    assert np.allclose(rotation.diagonal(spectrum), np.diagonal(dense), rtol=0, atol=SMALL * spectrum.sum())


@pytest.mark.parametrize("power", range(11))
def test_walsh_hadamard_equals_the_definition(power):
    size = 2**power
    transform = walsh_hadamard(np.eye(size))
    # Each pass rounds twice at most (a butterfly's entry, and the product with it); there are power / 4 of them.
    assert np.allclose(transform, _transform(size), rtol=2**-53 * (2 + power), atol=0)
    assert (transform == transform.T).all()


# More rows and longer ones than fit in a strip, and rows each longer than a strip.
@pytest.mark.parametrize(("rows", "size"), [(40, 12000), (2, 200003), (1, 131072)])
def test_large_ones_keep_norms_and_come_back(rows, size):
    rotation = Mixing(size, STREAM)
    x = np.random.default_rng(2).normal(size=(rows, size))
    y = rotation.apply(x)
    # Rounding errors of some eighty passes add up at random: 2^-53 √80 = 1e-15 of the norm.
    assert np.allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-13)
    assert np.abs(rotation.transpose(y) - x).max() < 1e-12
    alone = rotation.apply(x[-1:])
    assert np.abs(alone - y[-1]).max() < 1e-12


@pytest.mark.parametrize("size", [64, 65, 96, 127, 129, 257, 640])
def test_mixing_spreads_every_coordinate_like_a_haar_matrix(size):
    # E R_ij^4 = 3 / (n (n + 2)) under Haar measure. Over n² nearly independent entries the mean of n² R_ij^4, whose
    # variance is 96 for a normal entry, scatters by √96 / n. A map that leaves traces of its input is far off:
    # without signs between the two transforms of a round, 640 coordinates give 46 instead of 3.
    fourth = (_matrix(Mixing(size, STREAM)) ** 4).mean() * size**2
    assert abs(fourth - 3 * size / (size + 2)) < 5 * math.sqrt(96) / size


def test_mixing_depends_on_the_stream_only():
    x = np.random.default_rng(4).normal(size=(1, 50))
    assert (Mixing(50, STREAM).apply(x) == Mixing(50, Stream(3, "rotations")).apply(x)).all()
    assert not np.allclose(Mixing(50, STREAM).apply(x), Mixing(50, Stream(4, "rotations")).apply(x))


@pytest.mark.parametrize("side", [1, 2, 3])
def test_haar_entries_have_their_moments(side):
    count = 4000
    matrices = Dense.haar(side * count, STREAM, block=side).matrices
    # E Q_ij = 0 and E Q_ij² = 1 / n; E Q_ij^4 = 3 / (n (n + 2)). A QR without its signs fixed has E Q_11 far from 0.
    mean, square = matrices.mean(axis=0), (matrices**2).mean(axis=0)
    assert (np.abs(mean) <= standard_error_bound(1 / side, count, 1e-6, side**2)).all()
    spread = max(3 / (side * (side + 2)) - 1 / side**2, 0.0)
    assert (np.abs(square - 1 / side) <= standard_error_bound(spread, count, 1e-6, side**2) + 1e-14).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hadamard(12000, 128), "block = 128; valid for 12000 coordinates, .*: 1, 2, 4, 8, 16, 32$"),
        (lambda: Hadamard(24, 3), "block = 3; valid"),
        (lambda: Hadamard(24, 0), "block = 0; valid"),
        (lambda: Hadamard(4, 2, np.array([1, 1, 2, 1])), "not 4 numbers ±1"),
        (lambda: Hadamard(4, 2, np.ones(3)), r"signs of shape \(3,\)"),
        (lambda: Hadamard(0), "size = 0; valid: at least 1"),
        (lambda: Identity(0), "size = 0"),
        (lambda: Mixing(-1, STREAM), "size = -1"),
        (lambda: Dense.haar(4096, STREAM), "4096 coordinates is too large; valid: at most 2048"),
        (lambda: Dense.haar(10, STREAM, block=4), "block = 4; valid for 10 coordinates: a divisor"),
        (lambda: Dense(np.eye(3)), r"shape \(3, 3\); valid: \(blocks, n, n\)"),
        (lambda: walsh_hadamard(np.ones((2, 12))), "12 entries; valid: a power of two"),
        (lambda: walsh_hadamard(np.ones((2, 0))), "0 entries"),
        (lambda: Mixing(5, STREAM).apply(np.ones((2, 4))), r"shape \(2, 4\); valid: \(..., 5\)"),
        (lambda: Identity(5).diagonal(np.float64(1)), r"shape \(\); valid"),
    ],
)
def test_errors_name_the_argument_and_the_valid_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
