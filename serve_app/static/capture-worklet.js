/**
 * The microphone's end: blocks of the audio context in, frames of 20 ms of 24 kHz PCM16 out.
 *
 * Posts {pcm: ArrayBuffer (little-endian on every platform that runs a browser), level: RMS in [0, 1]}.
 * Resamples only where the context could not be opened at 24 kHz.
 */

const OUTPUT_RATE = 24000;
const FRAME = OUTPUT_RATE / 50;

/** Windowed-sinc resampling of a stream; the output does not depend on how the input is cut. */
class Resampler {
  static RESOLUTION = 512;

  constructor(inputRate, outputRate) {
    this.step = inputRate / outputRate;
    this.half = Math.ceil(16 * Math.max(1, this.step));
    this.kernel = Resampler.kernel(this.half, 0.92 * Math.min(1, 1 / this.step));
    this.held = new Float32Array(this.half);
    this.position = this.half;
  }

  /** One side of the symmetric kernel, RESOLUTION entries an input sample. */
  static kernel(half, cutoff) {
    const table = new Float32Array(half * Resampler.RESOLUTION + 1);
    for (let i = 0; i < table.length; i += 1) {
      const x = i / Resampler.RESOLUTION;
      const sinc = x === 0 ? 1 : Math.sin(Math.PI * cutoff * x) / (Math.PI * cutoff * x);
      const phase = Math.PI * (x / half);
      table[i] = cutoff * sinc * (0.42 + 0.5 * Math.cos(phase) + 0.08 * Math.cos(2 * phase));
    }
    return table;
  }

  push(block) {
    const input = new Float32Array(this.held.length + block.length);
    input.set(this.held);
    input.set(block, this.held.length);
    const output = [];
    for (; this.position + this.half < input.length; this.position += this.step) {
      output.push(this.at(input, this.position));
    }
    const keepFrom = Math.floor(this.position) - this.half;
    this.held = input.slice(keepFrom);
    this.position -= keepFrom;
    return output;
  }

  at(input, position) {
    let sum = 0;
    for (let n = Math.ceil(position) - this.half; n <= position + this.half; n += 1) {
      if (n >= 0) sum += input[n] * this.kernel[Math.round(Math.abs(position - n) * Resampler.RESOLUTION)];
    }
    return sum;
  }
}

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = sampleRate === OUTPUT_RATE ? null : new Resampler(sampleRate, OUTPUT_RATE);
    this.frame = new Int16Array(FRAME);
    this.filled = 0;
    this.energy = 0;
  }

  process([input]) {
    const block = input[0];
    if (block === undefined) return true; // the source has not begun, or its device is gone
    for (const sample of this.resampler ? this.resampler.push(block) : block) this.append(sample);
    return true;
  }

  append(sample) {
    const clipped = Math.max(-1, Math.min(1, sample));
    this.frame[this.filled] = Math.round(clipped * 32767);
    this.energy += clipped * clipped;
    this.filled += 1;
    if (this.filled < FRAME) return;
    const pcm = this.frame.buffer;
    this.port.postMessage({ pcm, level: Math.sqrt(this.energy / FRAME) }, [pcm]);
    this.frame = new Int16Array(FRAME);
    this.filled = 0;
    this.energy = 0;
  }
}

registerProcessor("capture", Capture);
