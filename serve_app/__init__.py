"""The application that the user talks to: configuration, ingress, session and the conversation's core."""
