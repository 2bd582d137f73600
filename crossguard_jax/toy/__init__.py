"""A small world in which the whole paper runs on a laptop: pictures, questions and their truth."""
