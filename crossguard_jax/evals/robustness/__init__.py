"""Systems under attack: suites that resume, figures with intervals, and what a table lacks.

Read downhill: ``systems`` (the attacks of a configuration, on what they climb), ``runs`` (cells on
disk), ``figures``, ``lint`` (the seal), ``plots`` and ``report`` (the section); ``probe`` (two
attacks alone, their pictures kept), ``detection`` (how well the check tells them), ``branches``
(what ARM costs) and ``pictures`` (rows to look at); ``attack`` (the verb).
"""
