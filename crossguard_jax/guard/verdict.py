"""What a guard says of one request."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """A guard's answer.

    Attributes:
        p_unsafe: probability of the positive label against the negative one, in [0, 1].
        unsafe: whether ``p_unsafe >= threshold``.
        threshold: the cut that was used.
        label: the label word of the side taken ("safe" or "unsafe" for a guard).
        truncated: whether the text was cut to fit the model's context.
    """

    p_unsafe: float
    unsafe: bool
    threshold: float
    label: str
    truncated: bool = False
