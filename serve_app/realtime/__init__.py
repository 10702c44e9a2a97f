"""The wire: OpenAI Realtime (GA names) as pure functions; JSON in, facts out; notices in, JSON out."""
