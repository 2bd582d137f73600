"""How well a model does its tasks: answers, captions, retrieval. Texts and numpy in, estimates out.

Every measure also comes row by row (``vqa_scores``, ``bleu_counts``, ``cider_scores``,
``retrieval_ranks``), for paired comparisons of two systems on the same rows.
"""

from crossguard_jax.core.tasks.captions import (
    bleu4,
    bleu_counts,
    bleu_of,
    caption_words,
    cider,
    cider_scores,
)
from crossguard_jax.core.tasks.intervals import bootstrap, share
from crossguard_jax.core.tasks.retrieval import Recalls, retrieval_ranks, retrieval_recalls
from crossguard_jax.core.tasks.vqa import normalize_answer, vqa_accuracy, vqa_scores

__all__ = [
    "Recalls",
    "bleu4",
    "bleu_counts",
    "bleu_of",
    "bootstrap",
    "caption_words",
    "cider",
    "cider_scores",
    "normalize_answer",
    "retrieval_ranks",
    "retrieval_recalls",
    "share",
    "vqa_accuracy",
    "vqa_scores",
]
