"""The letters every signature uses, and jaxtyping's array types under one import.

========  ====================================================================
letter    axis
========  ====================================================================
``B``     examples in a batch
``L``     tokens (text, or the merged picture + text sequence)
``S``     keys attended to, where they differ from the queries' ``L``
``P``     picture patches (or picture tokens after the tower)
``D``     model width
``H``     attention heads
``K``     key/value heads
``E``     width of one head
``V``     vocabulary
``R``     LoRA rank
``N``     restarts, or layers in a stack (``n_layers``)
``C``     colour channels
``M``     pictures, where there are not as many as examples
``X``     pixels along a side (``X Y`` for height and width)
========  ====================================================================

Leading capitals in a jaxtyping string name those axes: ``Float[Array, "B L D"]``. The test suite
runs with the runtime checker on, so a signature that lies fails.
"""

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

__all__ = ["Array", "Bool", "Float", "Int", "PRNGKeyArray", "PyTree", "Shaped"]
