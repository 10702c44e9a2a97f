"""OpenAI's REST over the same engines as the socket: transcriptions, speech, chat completions, voices, models.

- Each request stands alone: no session, no turn, no history; nothing is kept between two.
- Whoever asks is answered in OpenAI's terms: its field names, its error object, its events (`errors`).
- A client that hangs up stops the work (`streams`): every engine call is made while the client is known to be there.
- What a field cannot have here is refused when it would change the answer, and ignored when it would not.
"""
