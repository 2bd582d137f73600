"""``launch/run.sh --on LAUNCHER ...``: writes what starts a run elsewhere, and submits it.

Rendering is pure and needs the standard library alone: a launcher's module declares its options
(``add_arguments``) and makes of them the files and commands of a run (``submission``).
"""
