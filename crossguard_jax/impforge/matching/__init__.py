"""Stage 1: pictures that suit queries."""
