"""A client of the realtime endpoint: the wire, a live microphone and a loudspeaker that can be asked what it played.

`voice-serve talk` and the load tests are built on it, so it shares no code with the server but the sample formats:
what it measures is what a stranger would measure. All times are seconds of the monotonic clock.

- `RealtimeClient` sends and receives events and decides nothing. `ResumingClient` outlives its socket.
- `LiveMicrophone` sends 20 ms every 20 ms of wall clock: a recording sent faster would say nothing about a caller.
- `Player` is arithmetic without a clock of its own: it plays at 1x from the arrival of each chunk, as a page does.
"""
