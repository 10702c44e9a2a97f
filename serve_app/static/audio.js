/** Microphone and loudspeaker: 24 kHz PCM16 on this side, AudioWorklets on the other. */

export const RATE = 24000;

const workletUrl = (name) => new URL(`./${name}-worklet.js`, import.meta.url);

export class Microphone {
  #stream = null;
  #ownContext = null;
  #source = null;
  #node = null;

  /**
   * Asks for the microphone and starts sending frames of 20 ms.
   * @param {AudioContext} context used where the browser can open the microphone at its rate
   * @param {(pcm: ArrayBuffer, level: number) => void} onFrame level: RMS in [0, 1]
   * @param {() => void} onLost the device went away
   * @throws {DOMException} what getUserMedia says; `microphoneWords` puts it plainly
   */
  async start(context, onFrame, onLost) {
    this.#stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
    this.#stream.getAudioTracks()[0].addEventListener("ended", onLost);
    this.#source = await this.#sourceAt(context);
    await this.#source.context.audioWorklet.addModule(workletUrl("capture"));
    if (this.#stream === null) return; // stopped meanwhile
    this.#node = new AudioWorkletNode(this.#source.context, "capture", { numberOfOutputs: 0, channelCount: 1 });
    this.#node.port.onmessage = ({ data }) => onFrame(data.pcm, data.level);
    this.#source.connect(this.#node);
  }

  /** Firefox refuses a microphone at another rate than the context's: then one of its own, and the worklet resamples. */
  async #sourceAt(context) {
    try {
      return context.createMediaStreamSource(this.#stream);
    } catch (error) {
      if (error.name !== "NotSupportedError") throw error;
      this.#ownContext = new AudioContext();
      return this.#ownContext.createMediaStreamSource(this.#stream);
    }
  }

  stop() {
    if (this.#node !== null) this.#node.port.onmessage = null;
    this.#source?.disconnect();
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#ownContext?.close();
    this.#stream = this.#ownContext = this.#source = this.#node = null;
  }
}

export class Speaker {
  #context = null;
  #node = null;
  #onReport;
  #onFlushed = null;
  /** The item that is open: audio of it came and its end has not been played. @type {string | null} */
  itemId = null;

  /** @param {(report: {type: "progress" | "ended", itemId: string, playedMs: number}) => void} onReport */
  constructor(onReport) {
    this.#onReport = onReport;
  }

  get context() {
    return this.#context;
  }

  /** Must be called from a click or a key: browsers let no page make sound before that. */
  async start() {
    if (this.#context === null) {
      this.#context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
      await this.#context.audioWorklet.addModule(workletUrl("playback"));
      this.#node = new AudioWorkletNode(this.#context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
      this.#node.port.onmessage = ({ data }) => this.#report(data);
      this.#node.connect(this.#context.destination);
    }
    await this.#context.resume();
  }

  /** @param {Int16Array} pcm */
  play(itemId, pcm) {
    this.itemId = itemId;
    const samples = Float32Array.from(pcm, (value) => value / 32768);
    this.#node.port.postMessage({ type: "audio", itemId, samples }, [samples.buffer]);
  }

  /** No more audio of this item will come. */
  finish(itemId) {
    this.#node?.port.postMessage({ type: "end", itemId });
  }

  /**
   * Stops at once and forgets what is queued.
   * @returns {Promise<{itemId: string, playedMs: number} | null>} what was open, and how much of it was played
   */
  flush() {
    this.itemId = null;
    if (this.#node === null) return Promise.resolve(null);
    return new Promise((resolve) => {
      this.#onFlushed = resolve;
      this.#node.port.postMessage({ type: "flush" });
    });
  }

  #report(report) {
    if (report.type === "flushed") {
      this.#onFlushed?.(report.itemId === null ? null : report);
      this.#onFlushed = null;
      return;
    }
    if (report.type === "ended" && report.itemId === this.itemId) this.itemId = null;
    this.#onReport(report);
  }
}
