"""Judging a system: scored rows to figures, tables, plots and a report a stranger can read.

Read downhill: ``benchmarks`` (rows that somebody scored, and what is measured on them), then
``tables``, ``plots`` and ``examples`` (what there is to look at), ``blocks`` (what a section is
made of), ``guard_report`` (the sections that judge a guard) and ``report`` (sections to
``report.md``, ``report.html`` and ``report.json``). Scores come in as data.
"""
