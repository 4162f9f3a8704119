"""One self-contained HTML page of everything stored: verdicts, landscapes that compute in the page, leaderboards."""

from .page import report, write_report
from .sources import Sources, default_sources, run_sources

__all__ = ["Sources", "default_sources", "report", "run_sources", "write_report"]
