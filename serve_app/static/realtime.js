/** The wire: one WebSocket that speaks OpenAI Realtime. It carries events and decides nothing. */

const endpoint = (path) => new URL(path, document.baseURI);

/** After these closes the session may still be there for who comes back with its token (RFC 6455 7.4.1, IANA). */
const LOSSES = new Set([1001, 1005, 1006, 1011, 1012, 1014]);
/** Refusals that another attempt, perhaps at another replica, need not meet. */
const PASSING_ERRORS = new Set(["server_full", "server_draining", "resume_unavailable"]);
/** Between attempts to come back: up to so much, doubled each time; the draw keeps a crowd from coming at once. */
const FIRST_DELAY_MS = 250;
const LONGEST_DELAY_MS = 4000;
const ABOUT_AUDIO = "input_audio_buffer.";
/** Events that are kept to be sent again; more are not under way in the quarter of a second between two snapshots. */
const MOST_UNCONFIRMED = 64;

function sessionUrl(query = {}) {
  const url = endpoint("v1/realtime?model=voice-serve&own_events=1");
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  // A browser can set no header on a WebSocket; the token opens once, so one that was used is worth nothing in a log.
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  return url;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

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
  /** @type {{token: string, within_s: number, last_event_id?: string} | null} of the session, if it can be resumed */
  #resume = null;
  /** It was lost, and may go on at another socket: what is sent waits for that. */
  #isReturning = false;
  /** @type {{id: string, type: string, text: string, wasSent: boolean}[]} what was sent last, or waits for the session to be back */
  #unconfirmed = [];
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
  async open(apiKey) {
    this.#resume = null;
    this.#isReturning = false;
    this.#unconfirmed = [];
    const { close, isOurs } = await this.#connect(apiKey, {});
    if (close !== null && !isOurs) this.#onClose(close);
    return close === null;
  }

  /** Whether the session may go on after this close. */
  canResume({ code }) {
    return this.#resume !== null && LOSSES.has(code);
  }

  /**
   * Comes back to the session, trying as long as the server keeps it. Events that are sent meanwhile wait, and those
   * that the server has not taken in are sent again, once each; but for audio, which is lost.
   * @param {{itemId: string, playedMs: number} | null} stopped what was being played, and how far
   * @param {() => boolean} isWanted asked between attempts
   * @returns {Promise<boolean>} false: the session is lost, or not wanted any more
   */
  async resume(apiKey, stopped, isWanted) {
    const { token, within_s: withinS } = this.#resume;
    const query = { resume: token };
    if (stopped !== null) Object.assign(query, { item_id: stopped.itemId, audio_end_ms: Math.floor(stopped.playedMs) });
    const deadline = performance.now() + withinS * 1000;
    for (let delay = FIRST_DELAY_MS; performance.now() < deadline; delay = Math.min(2 * delay, LONGEST_DELAY_MS)) {
      await pause(Math.random() * delay);
      if (!isWanted()) return false;
      const { close, error } = await this.#connect(apiKey, query);
      if (close === null) return true;
      if (error !== null && !PASSING_ERRORS.has(error.code)) return false;
    }
    return false;
  }

  /**
   * @returns {Promise<{close: object | null, error: object | null, isOurs?: boolean}>} close: null once the session
   *   exists; isOurs: our own `close` came first
   */
  #connect(apiKey, query) {
    const protocols = apiKey ? ["realtime", `openai-insecure-api-key.${apiKey}`] : ["realtime"];
    const socket = new WebSocket(sessionUrl(query), protocols);
    this.#socket = socket;
    return new Promise((resolve) => {
      let wasOpen = false;
      let error = null;
      socket.onmessage = ({ data }) => {
        if (socket !== this.#socket) return;
        const event = JSON.parse(data);
        if (event.type === "session.created") {
          wasOpen = true;
          this.#resume = event.resume ?? null;
          if (this.#isReturning) this.#sendAgain(this.#resume?.last_event_id);
          resolve({ close: null, error: null });
        } else if (event.type === "error" && !wasOpen) {
          error = event.error; // a refusal: the close that follows says the same
        }
        this.#onEvent(event);
      };
      socket.onclose = ({ code, reason }) => {
        const close = { code, reason, wasOpen };
        const isCurrent = socket === this.#socket;
        if (isCurrent) this.#socket = null;
        if (isCurrent && wasOpen) this.#isReturning = this.canResume(close);
        if (!wasOpen) resolve({ close, error, isOurs: !isCurrent });
        else if (isCurrent) this.#onClose(close);
      };
    });
  }

  /** @returns {string | null} the event's id, which an `error` would quote; null if there is no session */
  send(event) {
    if (!this.isOpen && !this.#isReturning) return null;
    this.#count += 1;
    const id = `page_${this.#count}`;
    const text = JSON.stringify({ ...event, event_id: id });
    const wasSent = !this.#isReturning;
    this.#unconfirmed = [...this.#unconfirmed, { id, type: event.type, text, wasSent }].slice(-MOST_UNCONFIRMED);
    if (wasSent) this.#socket.send(text);
    return id;
  }

  /** @param {string | undefined} known the last event that the server knows of; undefined: it has all that was sent */
  #sendAgain(known) {
    this.#isReturning = false;
    if (known === undefined) this.#unconfirmed = this.#unconfirmed.filter(({ wasSent }) => !wasSent);
    else this.#unconfirmed.splice(0, this.#unconfirmed.findIndex(({ id }) => id === known) + 1);
    for (const event of this.#unconfirmed) {
      if (!event.type.startsWith(ABOUT_AUDIO)) this.#socket.send(event.text);
      event.wasSent = true;
    }
  }

  /** @param {ArrayBuffer} pcm */
  appendAudio(pcm) {
    if (!this.isOpen || this.#isReturning) return;
    this.#socket.send(JSON.stringify({ type: "input_audio_buffer.append", audio: toBase64(pcm) }));
  }

  close() {
    const socket = this.#socket;
    this.#socket = null;
    this.#isReturning = false;
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
