"""What a configuration takes on chips that are not here: memory, work, traffic, time.

Read downhill: ``chips`` (what there is to compile for, and its figures), ``models`` (a model from
its ``config.json`` alone), ``programs`` (the real steps on arrays that do not exist), ``flops`` and
``traffic`` (what a program does), ``measure`` (a compiled program's figures, kept), ``roofline``
(time, and what to change), ``search`` (meshes and their like, ranked), ``command`` (the verb).
"""
