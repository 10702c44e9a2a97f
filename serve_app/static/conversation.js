/**
 * What was said and who has the floor, folded from the server's events. No DOM, no sound, no socket.
 *
 * An entry is one item of the conversation. Of an interrupted answer `heardChars` says how far into `text` its
 * listener came: first by the share of the audio that was played here, then by what the server says was heard.
 */

/**
 * @typedef {object} Entry
 * @property {string} id
 * @property {"user" | "agent"} role
 * @property {string} text
 * @property {"growing" | "done" | "failed" | "removed"} status
 * @property {number | null} heardChars null: not interrupted
 * @property {number} receivedMs of audio
 * @property {Latency | null} latency
 * @property {string} note why it failed, and the like
 */

/** @typedef {{stages: {name: string, ms: number}[], totalMs: number}} Latency */

export const STAGES = ["endpointing", "stt", "llm_ttft", "first_segment", "tts_ttfb", "overhead"];

/** @returns {Latency | null} */
function latencyOf(metadata) {
  if (metadata?.["latency.total_ms"] === undefined) return null;
  const ms = (name) => Number(metadata[`latency.${name}_ms`] ?? 0);
  return { stages: STAGES.map((name) => ({ name, ms: ms(name) })), totalMs: ms("total") };
}

/** How many characters of `text` the words of `heard` take, in spite of spaces that differ. */
function prefixLength(text, heard) {
  const letters = heard.replace(/\s/g, "").length;
  let seen = 0;
  let end = 0;
  for (let i = 0; i < text.length && seen < letters; i += 1) {
    if (/\s/.test(text[i])) continue;
    seen += 1;
    end = i + 1;
  }
  return end;
}

/** The end of the last word that fits wholly into this share of the text. */
function wordsWithin(text, share) {
  const limit = Math.floor(text.length * Math.min(1, share));
  if (limit >= text.length) return text.length;
  return Math.max(0, text.slice(0, limit + 1).search(/\s\S*$/));
}

export class Conversation {
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  #itemOfResponse = new Map();
  #onEntry;
  userSpeaks = false;
  /** Something of the user's waits for an answer. */
  awaitsAnswer = false;
  /** @type {string | null} the response that is under way */
  responseId = null;

  /** @param {(entry: Entry) => void} onEntry an entry is new or has changed */
  constructor(onEntry) {
    this.#onEntry = onEntry;
  }

  /** @returns {Entry | undefined} */
  entry(id) {
    return this.#entries.get(id);
  }

  /** Forget the floor, keep what was said: the connection is over. */
  end() {
    this.userSpeaks = false;
    this.awaitsAnswer = false;
    this.responseId = null;
    for (const entry of this.#entries.values()) {
      if (entry.status === "growing") this.#change(entry, { status: entry.text ? "done" : "removed" });
    }
    this.#entries.clear();
    this.#itemOfResponse.clear();
  }

  /** The user interrupted this item after so much of it had been played. */
  cut(itemId, playedMs) {
    const entry = this.#entries.get(itemId);
    if (entry === undefined) return;
    const share = entry.receivedMs > 0 ? playedMs / entry.receivedMs : 0;
    this.#change(entry, { heardChars: wordsWithin(entry.text, share) });
  }

  /** @param {object} event of the server */
  apply(event) {
    const handler = this.#handlers[event.type];
    if (handler !== undefined) handler(event);
  }

  #handlers = {
    "input_audio_buffer.speech_started": ({ item_id }) => {
      this.userSpeaks = true;
      this.#open(item_id, "user");
    },
    "input_audio_buffer.speech_stopped": () => {
      this.userSpeaks = false;
      this.awaitsAnswer = true;
    },
    "conversation.item.added": ({ item }) => {
      if (item.role === "user") this.#addUserItem(item);
    },
    "conversation.item.input_audio_transcription.delta": ({ item_id, delta }) => {
      const entry = this.#open(item_id, "user");
      this.#change(entry, { text: entry.text + delta });
    },
    "conversation.item.input_audio_transcription.completed": ({ item_id, transcript }) => {
      this.#change(this.#open(item_id, "user"), { text: transcript, status: transcript ? "done" : "removed" });
    },
    "conversation.item.input_audio_transcription.failed": ({ item_id, error }) => {
      this.awaitsAnswer = false;
      const note = error?.message ?? "This could not be transcribed.";
      this.#change(this.#open(item_id, "user"), { status: "failed", note });
    },
    "conversation.item.deleted": ({ item_id }) => {
      const entry = this.#entries.get(item_id);
      if (entry?.role === "user") this.awaitsAnswer = false;
      if (entry !== undefined && entry.status !== "failed") this.#change(entry, { status: "removed" });
    },
    "conversation.item.retrieved": ({ item }) => this.#setHeard(item.id, item.content?.[0]?.transcript),
    "session.resumed": ({ lost_items }) => {
      this.userSpeaks = false;
      this.awaitsAnswer = false;
      for (const id of lost_items) {
        const entry = this.#entries.get(id);
        const note = "The connection was lost before this was understood.";
        if (entry !== undefined) this.#change(entry, { status: "failed", note });
      }
    },
    "response.created": ({ response }) => {
      this.responseId = response.id;
      this.awaitsAnswer = true;
    },
    "response.output_item.added": ({ response_id, item }) => {
      this.#itemOfResponse.set(response_id, item.id);
      this.#open(item.id, "agent");
    },
    "response.output_audio_transcript.delta": (event) => this.#say(event),
    "response.output_text.delta": (event) => this.#say(event),
    "response.done": ({ response }) => this.#endResponse(response),
  };

  /** Audio of the item has come. */
  receive(itemId, ms) {
    this.awaitsAnswer = false;
    this.#open(itemId, "agent").receivedMs += ms;
  }

  #addUserItem(item) {
    const entry = this.#open(item.id, "user");
    const written = item.content?.find((part) => part.type === "input_text");
    if (written !== undefined) this.#change(entry, { text: written.text, status: "done" });
  }

  #say({ item_id, delta }) {
    const entry = this.#open(item_id, "agent");
    this.#change(entry, { text: entry.text + delta });
  }

  #endResponse(response) {
    if (this.responseId === response.id) this.responseId = null;
    const itemId = response.output?.[0]?.id ?? this.#itemOfResponse.get(response.id);
    const failed = response.status === "failed";
    this.awaitsAnswer = false;
    if (itemId === undefined && !failed) return;
    const entry = this.#open(itemId ?? response.id, "agent");
    const note = failed ? (response.status_details?.error?.message ?? "The answer failed.") : "";
    this.#change(entry, { status: failed ? "failed" : "done", note, latency: latencyOf(response.metadata) });
    // A long text is cut to what metadata can hold; the item itself, which follows a truncation, has it all.
    const isWhole = response.metadata?.["heard.text_is_cut"] === undefined;
    if (isWhole) this.#setHeard(entry.id, response.metadata?.["heard.text"]);
  }

  #setHeard(itemId, heard) {
    const entry = this.#entries.get(itemId);
    if (entry === undefined || heard === undefined || heard === null) return;
    this.#change(entry, { heardChars: prefixLength(entry.text, heard) });
  }

  /** @returns {Entry} */
  #open(id, role) {
    let entry = this.#entries.get(id);
    if (entry === undefined) {
      entry = { id, role, text: "", status: "growing", heardChars: null, receivedMs: 0, latency: null, note: "" };
      this.#entries.set(id, entry);
      this.#onEntry(entry);
    }
    return entry;
  }

  #change(entry, changes) {
    Object.assign(entry, changes);
    this.#onEntry(entry);
  }
}
