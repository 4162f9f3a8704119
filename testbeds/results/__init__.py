"""Rows of stored runs, and every number computed from them: figures, page, README and documentation only draw or print it."""
