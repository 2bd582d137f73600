"""What tests here share."""

from tests.random_llava import llava_folder

__all__ = ["llava_folder"]
