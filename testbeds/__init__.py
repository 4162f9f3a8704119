"""Problems, figures and the command line; built on :mod:`lotion_theory`, never the reverse."""
