"""Judging a system: scored rows to figures, and figures to the sections of a report.

Read downhill: ``benchmarks`` (rows that somebody scored, and what is measured on them), then
``guard_report`` (the sections that judge a guard). Scores come in as data.
"""
