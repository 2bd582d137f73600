"""The small world: its things, requests, pictures and texts, and the truth about them."""
