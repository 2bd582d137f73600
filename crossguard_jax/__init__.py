"""A guard for multimodal models, trained and immunized in JAX."""
