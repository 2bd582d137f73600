"""ImpForge: harmless pictures matched to queries, and the rewriter that hides intent in both."""
