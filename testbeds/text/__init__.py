"""Results as text: tables of leaderboards, and the summary of a run of ``reproduce``."""
