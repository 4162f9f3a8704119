"""A training run: its configuration, the loop with its evaluation, and what is kept in the run's folder."""
