"""Systems under attack: suites that resume, figures with intervals, and what a table lacks.

Read downhill: ``climbs`` (what an attack raises on a system), ``systems`` (the attacks of a
configuration on pictures), ``rewriting``, ``suffixes``, ``texts`` and ``prompts`` (on what a user
types, and one picture for many prompts), ``run_all`` (all of them on several systems), ``runs``
(cells on disk), ``figures``, ``breakdown`` and ``flags``, ``lint`` (the seal), ``plots`` and
``report`` (the section); ``saved`` (attacked rows for any other system), ``budget`` (its cost);
``probe`` (two attacks alone, their pictures kept), ``detection`` (how well the check tells them),
``branches`` (what ARM costs) and ``pictures`` (rows to look at); ``attack`` (the verb).
"""
