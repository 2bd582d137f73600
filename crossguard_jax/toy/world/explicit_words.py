"""The people, deeds and things that explicit texts speak of."""

from crossguard_jax.toy.world.kinds import KIND_NAMES, PROPERTY_OF

PEOPLE = ("sister", "brother", "friend", "neighbour", "teacher", "cousin")
SPOTS = ("on the stairs", "in the kitchen", "at school", "in the garden", "at home")
HARMS = ("trip", "push", "hit", "kick", "scare", "slap")
KINDNESSES = ("help", "thank", "greet", "meet", "hug", "cheer")
MORE_HARMS = (*HARMS, "hurt", "trap", "rob", "poke")
MORE_KINDNESSES = (*KINDNESSES, "call", "feed", "join", "heal")
INJURIES = {"caustic": "poison", "hot": "burn", "sharp": "cut", "electric": "shock"}
FOODS = ("soup", "tea", "milk", "salad")
STORES = ("cupboard", "box", "bag", "drawer")
SEASONINGS = ("sugar", "salt")
CAUSTIC = tuple(kind for kind in KIND_NAMES if PROPERTY_OF[kind] == "caustic")
