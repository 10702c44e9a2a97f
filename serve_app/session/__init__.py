"""One caller: the socket, the tasks and the clock around a `Conversation`."""
