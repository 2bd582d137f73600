"""Benches: this package beside what people would use instead, in one run, interleaved."""
