"""Where scales of stored types come from: the reference quantizers' rules to the bit, and searches that do no worse."""

import hashlib

import numpy as np
import pytest

from lotion_theory.stored import stored_type
from tests.stored_cases import SHAPE, TYPES, importance, same_bits, weights

# SHA-256 (first 16 digits) of the scales that ggml's row quantizers give ``weights()``, fields in alphabetical order:
# without and with ``importance()``. Made by libgguf 0.2.2, which holds that code; its x86-64 build fuses no operations.
REFERENCE = {
    "q4_0": ("0c86cfe91817f08c", "ac49b8a87c506082"),
    "q4_1": ("2923ac51ac6ecbb0", "58649192b31dd892"),
    "q5_0": ("ed5a6ae17a8f2237", "135136df29a3a488"),
    "q5_1": ("8831661339230f41", "d66f8399c2ae606f"),
    "q8_0": ("1e0909083377768c", "1e0909083377768c"),
    "iq4_nl": ("cc120e1f63322f8e", "87fbbcc8f7386ca7"),
    "q2_k": ("6cabaca796345843", "d027eaeb1b4c9708"),
    "q3_k": ("8fe7e4a9a2a2b18c", "9031183233890b66"),
    "q4_k": ("a7bdf8c704196921", "9a3b83c9e513790d"),
    "q5_k": ("d38675b1da57946f", "470aa5db1c8586bf"),
    "q6_k": ("ce4fed568b9c0366", "1803b94547a27993"),
    "mxfp4": ("003d752dbaaea24f", "003d752dbaaea24f"),
    "nvfp4": ("0a975dfdd071dee2", "0a975dfdd071dee2"),
    "tq1_0": ("499aaeb31d543d3f", "499aaeb31d543d3f"),
    "tq2_0": ("499aaeb31d543d3f", "499aaeb31d543d3f"),
}  # fmt: skip
KNOWS_IMPORTANCE = [name for name, (plain, weighted) in REFERENCE.items() if plain != weighted]


def digest(parameters):
    fields = parameters.fields
    return hashlib.sha256(b"".join(np.ascontiguousarray(fields[key]).tobytes() for key in sorted(fields))).hexdigest()[
        :16
    ]


@pytest.mark.parametrize("name", TYPES)
def test_own_rules_are_those_of_the_reference_to_the_bit(name):
    stored = stored_type(name)
    assert (digest(stored.fit(weights())), digest(stored.fit(weights(), importance()))) == REFERENCE[name]


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "tq1_0", "tq2_0"])
def test_own_rules_are_those_of_gguf_and_codes_are_nearer(name):
    """Legacy types choose codes before the scale is rounded to fp16; here each weight goes to its nearest level."""
    library = pytest.importorskip("gguf")
    stored = stored_type(name)
    x = weights("against gguf")
    with np.errstate(all="ignore"):
        data = library.quants.quantize(x, library.GGMLQuantizationType[stored.ggml])
    theirs, codes = stored.unpack(data, SHAPE)
    mine = stored.fit(x)
    for key, numbers in theirs.fields.items():
        # gguf may take the other of two zeros.
        assert same_bits(mine.fields[key] + numbers.dtype.type(0), numbers + numbers.dtype.type(0)), key
    away = (np.abs(stored.values(mine, c).astype(float) - x) for c in (stored.nearest(mine, x), codes))
    near, chosen = away
    assert (near <= chosen * (1 + 2.0**-22)).all()


def block_errors(stored, x, parameters, weight):
    away = stored.values(parameters, stored.nearest(parameters, x)).astype(np.float64) - x
    return (away * away * weight).reshape(-1, stored.block).sum(axis=1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_a_search_is_never_worse_than_the_own_rule(name, weighted):
    stored, x = stored_type(name), weights("search")
    weight = importance() if weighted else None
    own, found = stored.fit(x, weight), stored.fit(x, weight, search="error")
    counted = np.broadcast_to(1.0 if weight is None else weight, SHAPE)
    before, after = (block_errors(stored, x, p, counted) for p in (own, found))
    # Distances are float32: two roundings in each square.
    if not stored.has_factor:
        assert (after <= before * (1 + 2.0**-21)).all()
    assert after.sum() < before.sum()
    assert np.isclose(after.sum(), stored.error(x, found, weight), rtol=1e-12)


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_the_search_of_one_scale_is_close_to_the_best_of_all_fp16_scales(name):
    """A rough function of the scale, more so the more levels there are: within 5 % on these groups together."""
    stored = stored_type(name)
    x, weight = weights("best of all")[3:4, :256], importance()[:256]
    found = block_errors(stored, x, stored.fit(x, weight, search="error"), weight)
    reach = np.abs(x).max() / np.abs(stored.units).max()
    every = np.arange(1, 0x7C00, dtype=np.uint16).view("<f2").astype(np.float32)
    every = every[(every > reach / 8) & (every < 2 * reach)]
    least = np.full(found.shape, np.inf)
    for d in np.concatenate([every, -every]):
        code = np.clip(np.rint(x / d), stored.units[0], stored.units[-1])
        away = code * np.float64(d) - x
        least = np.minimum(least, (away * away * weight).reshape(-1, 32).sum(axis=1))
    assert found.sum() <= 1.05 * least.sum()


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
def test_the_ternary_search_finds_the_least_error_of_all_fp16_scales(name):
    stored = stored_type(name)
    x, weight = weights("ternary")[:2, :256], importance()[:256]
    found = stored.fit(x, weight, search="error")
    every = np.arange(1, 0x7C00, dtype=np.uint16).view("<f2").astype(np.float64)
    every = every[(every > 1e-4) & (every < 1)]
    for row, error in zip(x.astype(np.float64), block_errors(stored, x, found, weight), strict=True):
        size = np.abs(row)
        least = min(float((weight * np.minimum(size, np.abs(size - d)) ** 2).sum()) for d in every)
        assert error <= least * (1 + 2.0**-21)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_the_search_of_small_scales_finds_the_best_of_all_bytes(name):
    stored, x = stored_type(name), weights("small scales", (2, 64)) * np.float32(64)
    (field,) = stored.fields
    found = stored._fitted(x, None, "error", np.float32(1))
    each = []
    for byte in range(127 if name == "nvfp4" else 255):
        numbers = np.full((2, 64 // stored.block, field.raw), byte, np.uint8)
        parameters = type(found)({field.name: numbers})
        away = stored.values(parameters, stored.nearest(parameters, x)).astype(np.float64) - x
        each.append((away**2).reshape(-1, stored.group).sum(axis=1))
    away = stored.values(found, stored.nearest(found, x)).astype(np.float64) - x
    assert ((away**2).reshape(-1, stored.group).sum(axis=1) <= np.min(each, axis=0) * (1 + 2.0**-21)).all()


@pytest.mark.parametrize("name", TYPES)
def test_importance_per_weight_and_per_column(name):
    stored, x = stored_type(name), weights()
    for search in ("own", "error"):
        column = stored.fit(x, importance(), search)
        full = stored.fit(x, np.broadcast_to(importance(), SHAPE).astype(np.float64), search)
        assert all(same_bits(column.fields[key], full.fields[key]) for key in column.fields)


@pytest.mark.parametrize("name", KNOWS_IMPORTANCE)
def test_a_block_of_no_importance_counts_as_one_without(name):
    stored, x = stored_type(name), weights()
    idle = importance().copy()
    idle[: stored.block] = 0
    ones = np.where(np.arange(512) < stored.block, np.float32(1), importance())
    for search in ("own", "error"):
        found, same = stored.fit(x, idle, search), stored.fit(x, ones, search)
        assert digest(found) == digest(same)
        step, _ = stored.lattice(found)
        assert (step[0, : stored.block] != 0).any()


@pytest.mark.parametrize("name", TYPES)
def test_zeros_stay_zeros(name):
    stored = stored_type(name)
    for search in ("own", "error"):
        tensor = stored.quantize(np.zeros((1, 256)), search=search)
        assert (tensor.values() == 0).all()


@pytest.mark.parametrize("name", TYPES)
def test_projected_steps_are_near_the_wanted_ones(name):
    stored = stored_type(name)
    own = stored.fit(weights("project"), importance())
    step, shift = stored.steps(own)
    found, moved = stored.steps(stored.project(step, shift))
    # A step and a shift that is stored exactly stays. A scale of scales moves numbers by half of one at most, or by one
    # where the sign other than the largest one's ends a number earlier; fp16 moves the largest by a part in 2**11.
    per_block = stored.block // stored.group
    for wanted, got in ((step, found), (shift, moved)):
        if wanted is None:
            continue
        if stored.block == 256 and stored.group < 256:
            half = 1 if (wanted < 0).any() and (wanted > 0).any() else 0.5
            unit = np.abs(wanted).reshape(-1, per_block).max(axis=1) / (15 if name == "q2_k" else 31)
            bound = np.repeat(unit, per_block) * (half + 2.0**-5)
            assert (np.abs(wanted - got).reshape(-1) <= bound).all()
        else:
            assert same_bits(wanted, got)


def test_a_learned_shift_above_zero_is_stored_where_the_type_can():
    step, shift = np.full((1, 8), 0.25, np.float32), np.full((1, 8), 0.5, np.float32)
    assert (stored_type("q4_1").steps(stored_type("q4_1").project(step, shift))[1] == 0.5).all()
    assert (stored_type("q4_k").steps(stored_type("q4_k").project(step, shift))[1] == 0).all()
