/**
 * The loudspeaker's end: plays 24 kHz audio in the order of arrival and knows how much of each item was played.
 *
 * In:  {type: "audio", itemId, samples: Float32Array} | {type: "end", itemId} | {type: "flush"}
 * Out: {type: "progress" | "ended" | "flushed", itemId, playedMs}; itemId of "flushed" is null if nothing was open.
 *
 * "Played" counts samples handed to the device. They cannot be called back, so after a flush they are exactly what
 * the listener will have heard. An item is open from its first audio until its "end" mark has been reached: one that
 * waits for audio of its own is still being played.
 */

const FADE = 128; // 5 ms: an abrupt stop clicks
const REPORT_EVERY = 960; // 40 ms

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    /** @type {{itemId: string, samples: Float32Array | null}[]} null samples: the item ends here */
    this.queue = [];
    this.offset = 0;
    this.itemId = null;
    this.played = 0;
    this.unreported = 0;
    this.fade = null;
    this.port.onmessage = ({ data }) => this[data.type](data);
  }

  audio({ itemId, samples }) {
    this.queue.push({ itemId, samples });
  }

  end({ itemId }) {
    this.queue.push({ itemId, samples: null });
  }

  flush() {
    const head = this.queue[0];
    if (head !== undefined && head.samples !== null) {
      this.open(head.itemId);
      this.fade = head.samples.slice(this.offset, this.offset + FADE);
      this.played += this.fade.length;
    }
    // Nothing but the end mark is left: the item was played to its end.
    const isOver = head !== undefined && head.samples === null && head.itemId === this.itemId;
    this.report("flushed", isOver ? null : this.itemId);
    this.queue = [];
    this.offset = 0;
    this.itemId = null;
    this.played = 0;
  }

  open(itemId) {
    if (itemId === this.itemId) return;
    this.itemId = itemId;
    this.played = 0;
  }

  report(type, itemId = this.itemId) {
    this.port.postMessage({ type, itemId, playedMs: (this.played * 1000) / sampleRate });
    this.unreported = 0;
  }

  process(_inputs, [output]) {
    const channel = output[0];
    let written = this.fadeOut(channel);
    while (written < channel.length && this.queue.length > 0) {
      const { itemId, samples } = this.queue[0];
      if (samples === null) {
        this.endItem(itemId);
        continue;
      }
      this.open(itemId);
      const part = samples.subarray(this.offset, this.offset + channel.length - written);
      channel.set(part, written);
      written += part.length;
      this.advance(part.length, samples.length);
    }
    if (this.unreported >= REPORT_EVERY) this.report("progress");
    return true;
  }

  fadeOut(channel) {
    if (this.fade === null) return 0;
    const tail = this.fade;
    this.fade = null;
    for (let i = 0; i < tail.length; i += 1) channel[i] = tail[i] * (1 - i / tail.length);
    return tail.length;
  }

  advance(count, length) {
    this.played += count;
    this.unreported += count;
    this.offset += count;
    if (this.offset < length) return;
    this.queue.shift();
    this.offset = 0;
  }

  endItem(itemId) {
    this.queue.shift();
    if (itemId !== this.itemId) return; // a second mark, or an item without audio
    this.report("ended");
    this.itemId = null;
    this.played = 0;
  }
}

registerProcessor("playback", Playback);
