"""PGD on the embeddings of a text's tokens: no text need have them, so it bounds what texts can."""

from dataclasses import replace

from crossguard_jax.attacks.joint import Inputs, Part, joint_pgd
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective, Outcome
from crossguard_jax.core.typing import Array, Bool, Float, PRNGKeyArray


def embedding_pgd(
    objective: Objective,
    x: Float[Array, "B L D"],
    key: PRNGKeyArray,
    budget: Budget,
    mask: Bool[Array, "B L"] | None = None,
    *,
    per_token: bool = False,
    keep_best: bool = True,
) -> AttackResult:
    """`pgd` on the tokens that may change, in one ball a text or one a token.

    Args:
        objective: of the embeddings; it is differentiated.
        x: embeddings of the clean text, float32.
        key: for starts and for whatever is random in the objective.
        budget: in units of the embeddings, which have no range: ``low=-inf, high=inf``.
        mask: which tokens may change; None: all. (Leave out padding, the template, the picture.)
        per_token: a ball for each token, not one for the whole text.
        keep_best: each row's best iterate over all steps and restarts; else the last iterate (of
            the best restart).

    Raises:
        UserError: ``x`` or ``mask`` cannot be used.
    """

    def alone(inputs: Inputs, key: PRNGKeyArray) -> Outcome:
        return objective(inputs[0], key)

    part = Part(budget, mask, per_token)
    result = joint_pgd(alone, (x,), key, (part,), keep_best=keep_best)
    return replace(result, x_adv=result.x_adv[0])
