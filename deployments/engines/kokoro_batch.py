"""Kokoro's forward for several texts at once, each of which comes out as it would alone.

kokoro's own forward is for one text: what is shorter than its batch is padded, and padding would change the sound at
four places. `PaddedKokoro` mends them in the model that it is given, and only while a batch runs:

- Its instance norms take mean and variance over time: here over a text's own frames, and what lies behind them is set
  to zero, as a convolution finds it behind the end of a text alone. So is the input of each layer that is not behind a
  norm (`_ENDS`).
- Two of its LSTMs run backwards over the whole length: here they are given packed sequences, as kokoro gives to others.
- Its Fourier transforms mirror the end of a sound: they are made text by text, a thousandth of the work.
- Its durations are squeezed to one text: the way from durations to frames is written anew here.

Every tensor from the frames on is a multiple of them long, or one more, so a mask follows from the length alone.
What is drawn by chance (the noise in the source) is drawn for each text, as it is for each forward.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

STYLE = 128
"""Where a voice's style for the sound ends and that for the prosody begins."""


class Frames:
    """How many frames each text of the batch under way has; none: a text alone, and nothing is masked."""

    def __init__(self) -> None:
        self._counts: torch.Tensor | None = None
        self._longest = 0

    @contextmanager
    def of(self, counts: torch.Tensor) -> Iterator[None]:
        self._counts, self._longest = counts, int(counts.max())
        try:
            yield
        finally:
            self._counts = None

    def mask(self, like: torch.Tensor) -> torch.Tensor | None:
        """1 within a text and 0 behind it, (texts, 1, time), for `like` (texts, channels, time)."""
        if self._counts is None:
            return None
        lengths = self.lengths(like.shape[-1])
        positions = torch.arange(like.shape[-1], device=like.device)
        return (positions < lengths.unsqueeze(1)).unsqueeze(1).to(like.dtype)

    def lengths(self, longest: int) -> torch.Tensor:
        """Of each text in a tensor in which the longest has so many steps."""
        assert self._counts is not None, "only asked during a batch"
        steps, more = divmod(longest, self._longest)
        return self._counts * steps + more

    @property
    def is_batch(self) -> bool:
        return self._counts is not None


class _MaskedNorm(nn.Module):  # type: ignore[misc]  # torch's types are not read
    """InstanceNorm1d over each text's own frames."""

    def __init__(self, norm: Any, frames: Frames) -> None:
        super().__init__()
        self._norm, self._frames = norm, frames

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = self._frames.mask(x)
        if mask is None:
            return self._norm(x)
        count = mask.sum(-1, keepdim=True)
        mean = (x * mask).sum(-1, keepdim=True) / count
        centred = (x - mean) * mask
        variance = centred.square().sum(-1, keepdim=True) / count
        scaled = centred * torch.rsqrt(variance + self._norm.eps)
        return scaled * self._norm.weight.unsqueeze(-1) + self._norm.bias.unsqueeze(-1)


class _PackedLstm(nn.Module):  # type: ignore[misc]  # torch's types are not read
    def __init__(self, lstm: Any, frames: Frames) -> None:
        super().__init__()
        self._lstm, self._frames = lstm, frames

    def forward(self, x: torch.Tensor) -> Any:
        if not self._frames.is_batch:
            return self._lstm(x)
        lengths = self._frames.lengths(x.shape[1]).cpu()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, state = self._lstm(packed)
        return pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0], state


class _TextByText(nn.Module):  # type: ignore[misc]  # torch's types are not read
    """kokoro's Fourier transforms, each text's with its own end."""

    def __init__(self, stft: Any, frames: Frames) -> None:
        super().__init__()
        self._stft, self._frames = stft, frames

    def transform(self, sound: torch.Tensor) -> Any:
        if not self._frames.is_batch:
            return self._stft.transform(sound)
        lengths = self._frames.lengths(sound.shape[-1]).tolist()
        parts = [self._stft.transform(row[None, :n]) for row, n in zip(sound, lengths, strict=True)]
        return _stacked([magnitude for magnitude, _ in parts]), _stacked([phase for _, phase in parts])

    def inverse(self, magnitude: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
        if not self._frames.is_batch:
            return self._stft.inverse(magnitude, phase)
        lengths = self._frames.lengths(magnitude.shape[-1]).tolist()
        rows = zip(magnitude, phase, lengths, strict=True)
        return _stacked([self._stft.inverse(m[None, :, :n], p[None, :, :n]) for m, p, n in rows])


def _stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors (1, channels, time) of several lengths as one, with zeros behind the shorter."""
    longest = max(part.shape[-1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, longest - part.shape[-1])) for part in parts])


class PaddedKokoro:
    """Speaks several texts at once with a `KModel`, which goes on to speak one alone as before."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._frames = frames = Frames()
        self._phonemes = Frames()
        predictor, generator = model.predictor, model.decoder.generator
        predictor.lstm = _PackedLstm(predictor.lstm, self._phonemes)
        predictor.shared = _PackedLstm(predictor.shared, frames)
        generator.stft = _TextByText(generator.stft, frames)
        for module in list(model.modules()):
            kind = type(module).__name__
            if kind == "AdaIN1d":
                module.norm = _MaskedNorm(module.norm, frames)
                module.register_forward_hook(self._mask_output)
            elif kind == "AdainResBlk1d" and not isinstance(module.pool, nn.Identity):
                module.pool.register_forward_hook(self._mask_output)
        for layer in (*generator.ups, *generator.noise_convs, generator.conv_post):
            layer.register_forward_pre_hook(self._mask_input)

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch's types are not read
    def forward(
        self, texts: Sequence[torch.Tensor], styles: torch.Tensor, speeds: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Audio (samples,) and durations (n,) of each text: ids int64 (n,); `styles` (texts, 256); `speeds` (texts,).

        kokoro's `forward_with_tokens`, with a length for each text.
        """
        model, device = self._model, styles.device
        lengths = torch.tensor([len(text) for text in texts], device=device)
        ids = nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
        is_behind = torch.arange(ids.shape[1], device=device) >= lengths.unsqueeze(1)
        prosody, sound = styles[:, STYLE:], styles[:, :STYLE]
        bert = model.bert_encoder(model.bert(ids, attention_mask=(~is_behind).int()))
        encoded = model.predictor.text_encoder(bert.transpose(-1, -2), prosody, lengths, is_behind)
        with self._phonemes.of(lengths):
            hidden, _ = model.predictor.lstm(encoded)
        shares = torch.sigmoid(model.predictor.duration_proj(hidden)).sum(-1) / speeds.unsqueeze(1)
        durations = shares.round().clamp(min=1).long().masked_fill(is_behind, 0)
        counts = durations.sum(1)
        alignment = _alignment(durations, int(counts.max()))
        spoken = model.text_encoder(ids, lengths, is_behind)
        with self._frames.of(counts):
            pitch, energy = model.predictor.F0Ntrain(encoded.transpose(-1, -2) @ alignment, prosody)
            mask = self._frames.mask(pitch.unsqueeze(1))
            assert mask is not None, "during a batch"
            pitch, energy = pitch * mask[:, 0], energy * mask[:, 0]
            audio = model.decoder(spoken @ alignment, pitch, energy, sound)
            samples = self._frames.lengths(audio.shape[-1]).tolist()
        return [
            (audio[row, 0, :count], durations[row, : len(text)])
            for row, (text, count) in enumerate(zip(texts, samples, strict=True))
        ]

    def _mask_output(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        mask = self._frames.mask(output)
        return output if mask is None else output * mask

    def _mask_input(self, _module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        mask = self._frames.mask(inputs[0])
        return inputs if mask is None else (inputs[0] * mask,)


def _alignment(durations: torch.Tensor, frames: int) -> torch.Tensor:
    """1 where a frame belongs to a phoneme: (texts, phonemes, frames) of `durations` (texts, phonemes)."""
    ends = durations.cumsum(1).unsqueeze(-1)
    starts = ends - durations.unsqueeze(-1)
    positions = torch.arange(frames, device=durations.device)
    return ((starts <= positions) & (positions < ends)).float()
