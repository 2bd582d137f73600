"""Systems under attack: suites that resume, figures with intervals, and what a table lacks.

Read downhill: ``systems`` (the attacks of a configuration, on what they climb), ``runs`` (cells on
disk), ``figures``, ``lint`` (the seal), ``plots`` and ``report`` (the section).
"""
