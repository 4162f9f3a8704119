"""One self-contained HTML page of everything stored: verdicts, landscapes that compute in the page, leaderboards.

:func:`testbeds.report.page.write_report` writes it from :class:`testbeds.report.sources.Sources`.
"""
