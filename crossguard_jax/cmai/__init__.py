"""CMAI: consistency of picture and text, adversarial training, and a defense that adapts."""
