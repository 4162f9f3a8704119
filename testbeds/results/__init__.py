"""Rows of stored runs, and every number computed from them; figures, page, README and documentation show these."""
