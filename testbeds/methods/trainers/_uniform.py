"""What methods for integer grids need to know of a codebook."""

from lotion_theory.grids import Codebook


def gap(book: Codebook, method: str) -> float:
    """Step of a uniform codebook over its highest level, so that ``top * gap`` is the step of a block's grid.

    Raises ValueError for a codebook that is not uniform.
    """
    if book.step is None:
        raise ValueError(
            f"codebook {book.name}: {method} is defined on uniform grids only, e.g. int2 ... int8, ternary, binary"
        )
    return float(book.step / book.high)
