"""How results look. Knows no model: what it shows comes in as data.

Read downhill: ``tables``, ``plots`` and ``examples`` (what there is to look at), ``blocks`` (what a
section is made of), ``html`` and ``markdown`` (what a block becomes), ``report`` (sections to
``report.md``, ``report.html`` and ``report.json``).
"""
