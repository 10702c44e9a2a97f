"""Tests that need SGLang, in an environment of its own."""
