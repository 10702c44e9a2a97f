"""Where the records of sessions lie (`session.resumption.SessionStore`): an actor of the cluster, or Redis."""
