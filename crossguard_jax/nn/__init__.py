"""Pure model code in Flax NNX: CLIP, Llama, LLaVA and BERT, LoRA, and two-token scoring."""
