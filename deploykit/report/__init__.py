"""The report of a run: frozen records, and what renders them as JSON, on a terminal and as a page."""
