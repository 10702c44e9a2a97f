"""The machines behind the voice: one Ray Serve deployment a stage, one file an engine. Never imports serve_app."""
