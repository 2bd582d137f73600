"""What a system says of one request."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """A system's answer.

    Attributes:
        p_unsafe: probability of the positive label against the negative one, in [0, 1]; of the
            worst window of a long text. NaN where the request was rejected without it.
        unsafe: whether the request is to be stopped: ``p_unsafe >= threshold``, or rejected.
        threshold: the cut that was used.
        label: the label word of the side taken ("safe" or "unsafe" for a guard).
        rejected: whether the policy gives no answer, since text and picture do not agree.
        s_c: how well they agree, the least over windows and pictures; None where nothing checks.
        branch: what the policy did; "accept" is the plain answer.
        windows: in how many overlapping parts the text was read.
        complied: of a model that answers, whether it did as it was asked; ``p_unsafe`` is then 0 or
            1, whether it refused. None for what only lets pass.
    """

    p_unsafe: float
    unsafe: bool
    threshold: float
    label: str
    rejected: bool = False
    s_c: float | None = None
    branch: str = "accept"
    windows: int = 1
    complied: bool | None = None
