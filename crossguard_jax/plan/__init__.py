"""What a configuration takes on chips that are not here: memory, work, traffic, time.

Read downhill: ``chips`` (what there is to compile for, and its figures), ``models`` (a model from
its ``config.json`` alone), ``jobs`` and ``programs`` (the real steps on arrays that do not exist),
``flops`` and ``traffic`` (what a program does), ``measure`` (a compiled program's figures, kept),
``roofline`` (time, and what to change), ``planning`` (all of it for a mesh), ``search`` (meshes and
their like, ranked), ``tables`` (this package's own pages), ``command`` (the verb).
"""
