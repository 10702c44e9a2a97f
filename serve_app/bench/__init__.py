"""Measurements of engines by themselves, without a server: what `voice-serve bench` runs."""
