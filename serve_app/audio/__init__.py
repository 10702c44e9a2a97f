"""Audio as numbers: sample formats, resampling, framing. No clock, no I/O, nothing but numpy.

`pcm` is bytes, 16-bit little-endian mono; `samples` is int16 (n,); `audio` is float32 (n,) in [-1, 1].
"""
