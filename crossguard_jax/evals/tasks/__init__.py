"""What a LLaVA or a CLIP does with questions, captions and retrieval, clean and under attack.

Read downhill: ``rows`` (files to items), ``answering``, ``words`` and ``retrieval`` (the tasks),
``objectives`` and ``attack``, ``report``, and ``evaluate`` (the verb).
"""
