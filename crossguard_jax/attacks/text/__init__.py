"""Attacks on texts: on their embeddings, by edits of their letters and words, on their tokens."""
