/** The wire: one WebSocket that speaks OpenAI Realtime. It carries events and decides nothing. */

const endpoint = (path) => new URL(path, document.baseURI);

function sessionUrl() {
  const url = endpoint("v1/realtime?model=voice-serve");
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url;
}

/** @param {ArrayBuffer} buffer */
function toBase64(buffer) {
  return btoa(String.fromCharCode(...new Uint8Array(buffer)));
}

/** @returns {Int16Array} */
export function decodePcm(base64) {
  const text = atob(base64);
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

export class RealtimeConnection {
  #socket = null;
  #count = 0;
  #onEvent;
  #onClose;

  /**
   * @param {(event: object) => void} onEvent every event of the server, in order
   * @param {(close: {code: number, reason: string, wasOpen: boolean}) => void} onClose not after our own `close`
   */
  constructor(onEvent, onClose) {
    this.#onEvent = onEvent;
    this.#onClose = onClose;
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /** Resolves to true once the session exists, to false if it closed before; `onClose` then says why. */
  open(apiKey) {
    const protocols = apiKey ? ["realtime", `openai-insecure-api-key.${apiKey}`] : ["realtime"];
    const socket = new WebSocket(sessionUrl(), protocols);
    this.#socket = socket;
    return new Promise((resolve) => {
      let wasOpen = false;
      socket.onmessage = ({ data }) => {
        if (socket !== this.#socket) return;
        const event = JSON.parse(data);
        this.#onEvent(event);
        if (event.type === "session.created") {
          wasOpen = true;
          resolve(true);
        }
      };
      socket.onclose = ({ code, reason }) => {
        resolve(false);
        if (socket !== this.#socket) return;
        this.#socket = null;
        this.#onClose({ code, reason, wasOpen });
      };
    });
  }

  /** @returns {string | null} the event's id, which an `error` would quote; null if nothing is connected */
  send(event) {
    if (!this.isOpen) return null;
    this.#count += 1;
    const id = `page_${this.#count}`;
    this.#socket.send(JSON.stringify({ ...event, event_id: id }));
    return id;
  }

  /** @param {ArrayBuffer} pcm */
  appendAudio(pcm) {
    this.send({ type: "input_audio_buffer.append", audio: toBase64(pcm) });
  }

  close() {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000, "the user stopped");
  }
}

/**
 * Asks the server over HTTP.
 * @returns {Promise<{status: number, body: object | null}>} status 0: not reachable
 */
export async function ask(path, apiKey) {
  try {
    const headers = apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
    const answer = await fetch(endpoint(path), { headers, cache: "no-store" });
    return { status: answer.status, body: await answer.json().catch(() => null) };
  } catch {
    return { status: 0, body: null };
  }
}
