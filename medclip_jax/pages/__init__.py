"""Self-contained HTML pages: everything inline, nothing loaded from anywhere."""
