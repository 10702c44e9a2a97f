"""Writes Kokoro's weights as an ONNX file: `python -P kokoro_export.py FOLDER WEIGHTS OUTPUT`.

Run as a file of its own (-P: its folder has a `kokoro.py`), in a process that ends: the export takes half a minute and the memory of torch, of which the
replica that speaks needs neither. Imports nothing of the project.

The graph takes `phonemes` int64 (1, n + 2), `style` float32 (1, 256) and `speed` float32 (1,), and gives `audio`
float32 (samples,) at 24 kHz and `durations` int64 (n + 2,), in frames of 600 samples.

kokoro 0.9.4's `disable_complex=True` replaces the Fourier transforms, which ONNX lacks, by convolutions that are not the
same: `correct` makes them so, after which torch and ONNX say the same.

- The inverse leaves out two factors (its comments say so): the doubling of all bins but the first and the last, and the
  division by the overlap of the windows. All is 2.5 dB quieter, and the two bins too loud by 6 dB.
- The sine at the highest bin is 1e-16 instead of 0, so that its phase is -pi instead of pi in a third of the frames.
- The ends are padded with the last sample instead of by reflection.
"""

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

OPSET = 17
REPOSITORY = "hexgrad/Kokoro-82M"


def load(folder: Path, weights: Path, *, disable_complex: bool) -> Any:
    """kokoro's model from `config.json` and the weights, ready for inference on the CPU."""
    from kokoro import KModel
    from torch.nn.utils import remove_weight_norm

    # A repository name keeps kokoro from printing one; it is not used when both paths are given.
    model = KModel(
        repo_id=REPOSITORY,
        config=str(folder / "config.json"),
        model=str(weights),
        disable_complex=disable_complex,
    )
    for module in model.modules():
        # The product of the two parts of a weight, once instead of at every forward.
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)
    return model.eval()


def correct(stft: Any) -> None:
    """Makes `CustomSTFT` what `torch.stft` and `torch.istft` are."""
    import torch

    factor = torch.full((stft.freq_bins, 1, 1), 2.0)
    factor[0] = factor[-1] = 1.0
    factor /= (stft.window**2).sum() / stft.hop_length
    stft.weight_backward_real *= factor
    stft.weight_backward_imag *= factor
    stft.weight_forward_imag[0] = stft.weight_forward_imag[-1] = 0.0
    stft.pad_mode = "reflect"


def export(folder: Path, weights: Path, output: Path) -> None:
    import torch
    from kokoro.model import KModelForONNX

    if find_spec("onnx") is None:
        sys.modules["onnx"] = _no_onnx()
    model = load(folder, weights, disable_complex=True)
    correct(model.decoder.generator.stft)
    phonemes = torch.tensor([[0, *range(1, 31), 0]])
    with torch.no_grad():
        torch.onnx.export(
            KModelForONNX(model),
            (phonemes, torch.zeros(1, 256), torch.ones(1)),
            str(output),
            input_names=["phonemes", "style", "speed"],
            output_names=["audio", "durations"],
            dynamic_axes={"phonemes": {1: "n"}, "audio": {0: "samples"}, "durations": {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )


def _no_onnx() -> ModuleType:
    """As much of `onnx` as torch's exporter needs to find that the finished graph has no function of onnxscript: it has
    none, and the library is asked for nothing else."""
    module = ModuleType("onnx")
    empty = SimpleNamespace(graph=SimpleNamespace(node=()))
    module.load_model_from_string = lambda _: empty  # type: ignore[attr-defined]
    return module


if __name__ == "__main__":
    # torch deprecates what kokoro is built of (weight_norm, jit) and this exporter; nothing that a user could change.
    warnings.simplefilter("ignore")
    export(*(Path(argument) for argument in sys.argv[1:4]))
