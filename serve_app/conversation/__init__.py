"""The conversation as a state machine: no clock, no I/O, no tasks; the standard library only."""
