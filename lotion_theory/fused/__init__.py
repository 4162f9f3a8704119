"""Array code made into one pass over memory: recorded as a graph, written out for LLVM, kept as machine code.

Nothing here knows of number formats. Who uses it: :mod:`lotion_theory.formats.passes`.
"""
