/**
 * Joins the parts: microphone -> wire -> conversation -> page and loudspeaker.
 *
 * The rules that must survive edits:
 * - At speech_started our own playback stops at once; an answer that was open is truncated at what was played.
 * - Audio of an item that was cut is never played again, however late it comes.
 * - Every `await` may be overtaken by a press of Stop: what follows it checks that its attempt is still the current one.
 */

import { Microphone, RATE, Speaker } from "./audio.js";
import { Conversation } from "./conversation.js";
import { RealtimeConnection, ask, decodePcm } from "./realtime.js";
import { Settings } from "./settings.js";
import { keep, recall } from "./storage.js";
import { View } from "./view.js";
import { closeWords, insecureWords, lostWords, microphoneWords, resumingWords, unreadyWords } from "./words.js";

const READY_POLL_MS = 2000;
const KEY_STORAGE = "voice-serve.api-key";
const NOTICES = ["microphone", "close", "lost", "insecure", "resume", "unheard"];

const $ = (id) => document.getElementById(id);

/** What a test or a curious person can read; times are performance.now(). */
const report = {
  floor: "idle",
  turns: 0,
  playedMs: 0,
  playedByItem: {},
  speechStarts: [],
  stops: [],
  truncations: [],
  errors: [],
  closes: [],
  drains: 0,
  resumes: [],
};
window.voiceServe = report;

class App {
  #view = new View();
  #speaker = new Speaker((progress) => this.#onPlayback(progress));
  #microphone = new Microphone();
  #connection = new RealtimeConnection((event) => this.#onEvent(event), (close) => this.#onClose(close));
  #conversation = new Conversation((entry) => this.#view.showEntry(entry));
  #settings = new Settings(() => this.#configure());
  #attempt = 0;
  #isOn = false;
  #hasSession = false;
  #hasMicrophone = false;
  /** The connection was lost, and the session is being looked for. */
  #isResuming = false;
  #asksMicrophone = false;
  /** Items that were interrupted. */
  #cut = new Set();
  /** Ids of events that may fail without harm: what they are about can be over when they arrive. */
  #quiet = new Set();
  #settingsEvent = null;
  #apiKey = recall("sessionStorage", KEY_STORAGE) ?? "";

  start() {
    $("talk").addEventListener("click", () => (this.#isOn ? this.stop() : this.talk()));
    document.addEventListener("keydown", (event) => this.#onKey(event));
    $("composer").addEventListener("submit", (event) => this.#onMessage(event));
    $("key-form").addEventListener("submit", (event) => this.#onKeyGiven(event));
    const words = insecureWords();
    if (words !== null) this.#view.notify("insecure", words);
    this.#watchServer();
  }

  // --- on and off -----------------------------------------------------------------------------------------------

  async talk() {
    const attempt = this.#begin();
    const words = insecureWords();
    if (words !== null) return this.#giveUp("insecure", words);
    try {
      await this.#speaker.start();
      this.#asksMicrophone = true;
      this.#showFloor();
      await this.#microphone.start(
        this.#speaker.context,
        (pcm, level) => this.#onFrame(pcm, level),
        () => this.#onMicrophoneLost(),
      );
    } catch (error) {
      if (attempt === this.#attempt) this.#giveUp("microphone", microphoneWords(error));
      return undefined;
    }
    if (attempt !== this.#attempt) return this.#microphone.stop();
    this.#asksMicrophone = false;
    this.#hasMicrophone = true;
    return this.#connect();
  }

  stop() {
    this.#attempt += 1;
    this.#isOn = this.#hasSession = this.#hasMicrophone = this.#asksMicrophone = this.#isResuming = false;
    this.#connection.close();
    this.#microphone.stop();
    this.#speaker.flush();
    this.#conversation.end();
    this.#showFloor();
  }

  #begin() {
    this.#attempt += 1;
    this.#isOn = true;
    this.#view.dismiss(...NOTICES);
    this.#showFloor();
    return this.#attempt;
  }

  #giveUp(key, words) {
    this.stop();
    this.#view.notify(key, words);
  }

  /** @returns {Promise<boolean>} whether a session is open */
  async #connect() {
    this.#view.divide();
    const isOpen = await this.#connection.open(this.#apiKey);
    this.#showFloor();
    return isOpen;
  }

  #onClose(close) {
    report.closes.push(close);
    if (this.#hasSession && this.#connection.canResume(close)) return this.#resume(close);
    return this.#end(closeWords(close), close);
  }

  #end(words, close) {
    this.#giveUp("close", words);
    if (close.code === 1008 && /key/i.test(close.reason)) this.#view.askForKey();
    // A handshake that was refused says nothing to a page; the same door by HTTP does.
    this.#watchServer();
  }

  /** The same conversation at another socket; what was being played stops here, and the server learns where. */
  async #resume(close) {
    const attempt = this.#attempt;
    this.#hasSession = false;
    this.#isResuming = true;
    this.#view.notify("resume", resumingWords(close));
    this.#showFloor();
    const isWanted = () => attempt === this.#attempt;
    if (this.#speaker.itemId !== null) this.#cut.add(this.#speaker.itemId);
    const stopped = await this.#speaker.flush();
    const isBack = isWanted() && (await this.#connection.resume(this.#apiKey, stopped, isWanted));
    if (!isWanted()) return;
    report.resumes.push({ isBack, stopped });
    if (!isBack) {
      this.#view.dismiss("resume");
      this.#end(lostWords(), close);
      return;
    }
    this.#view.dismiss("resume");
    this.#showFloor();
  }

  #onMicrophoneLost() {
    this.#giveUp("lost", { title: "The microphone went away.", remedy: "Plug it in and press Talk again." });
  }

  // --- what the person does -------------------------------------------------------------------------------------

  #onKey(event) {
    const isTyping = event.target.closest("input, textarea, select, button, summary, a");
    if (event.code !== "Space" || event.repeat || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    $("talk").click();
  }

  #onFrame(pcm, level) {
    this.#view.setLevel(level);
    if (this.#hasSession) this.#connection.appendAudio(pcm);
  }

  async #onMessage(event) {
    event.preventDefault();
    const text = $("message").value.trim();
    if (text === "") return;
    if (!this.#hasSession && !this.#isResuming && !(await this.#connectForText())) return;
    $("message").value = "";
    await this.#interrupt();
    if (this.#conversation.responseId !== null) this.#sendQuietly({ type: "response.cancel" });
    const content = [{ type: "input_text", text }];
    this.#connection.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
    this.#connection.send({ type: "response.create" });
    this.#conversation.awaitsAnswer = true;
    this.#showFloor();
  }

  async #connectForText() {
    const attempt = this.#begin();
    await this.#speaker.start();
    if (attempt !== this.#attempt) return false;
    return this.#connect();
  }

  #onKeyGiven(event) {
    event.preventDefault();
    this.#apiKey = $("api-key").value.trim();
    keep("sessionStorage", KEY_STORAGE, this.#apiKey);
    this.#view.hideKeyForm();
    this.#view.dismiss("close");
    this.#showModels();
  }

  #configure() {
    if (!this.#hasSession && !this.#isResuming) return;
    this.#settingsEvent = this.#connection.send({ type: "session.update", session: this.#settings.session() });
  }

  // --- what the server says -------------------------------------------------------------------------------------

  #onEvent(event) {
    this.#conversation.apply(event);
    switch (event.type) {
      case "session.created":
        this.#onSession(event.session);
        break;
      case "session.resumed":
        if (event.lost_items.length > 0) {
          this.#view.notify("unheard", { title: "You were not heard to the end.", remedy: "Please say it again." });
        }
        break;
      case "session.draining":
        report.drains += 1; // the close comes when the turn is over
        break;
      case "session.updated":
        this.#settings.say("In use from the next answer.");
        break;
      case "input_audio_buffer.speech_started":
        report.speechStarts.push({ atMs: performance.now() });
        this.#interrupt();
        break;
      case "response.output_audio.delta":
        this.#play(event.item_id, decodePcm(event.delta));
        break;
      case "response.output_audio.done":
        this.#speaker.finish(event.item_id);
        break;
      case "response.done":
        this.#onResponseDone(event.response);
        break;
      case "conversation.item.truncated":
        // The server knows which words that leaves; the item tells.
        this.#sendQuietly({ type: "conversation.item.retrieve", item_id: event.item_id });
        break;
      case "error":
        this.#onError(event.error);
        break;
      default:
    }
    this.#showFloor();
  }

  #onSession(session) {
    this.#hasSession = true;
    if (this.#isResuming) {
      this.#isResuming = false; // its settings have lived on
      return;
    }
    this.#settings.setServer(session);
    if (!this.#settings.isEmpty) this.#configure();
  }

  #play(itemId, pcm) {
    this.#conversation.receive(itemId, (pcm.length * 1000) / RATE);
    if (!this.#cut.has(itemId)) this.#speaker.play(itemId, pcm);
  }

  #onResponseDone(response) {
    if (response.status === "completed") report.turns += 1;
    for (const item of response.output ?? []) this.#speaker.finish(item.id);
  }

  #onError(error) {
    if (this.#quiet.delete(error.event_id)) return;
    report.errors.push(error);
    if (!this.#hasSession) return; // a refusal: the close that follows says the same
    if (error.event_id && error.event_id === this.#settingsEvent) this.#settings.say("Refused by the server.");
    this.#view.notify(`error-${error.code ?? error.type}`, { title: error.message });
  }

  async #interrupt() {
    if (this.#speaker.itemId === null) return;
    this.#cut.add(this.#speaker.itemId);
    const stopped = await this.#speaker.flush();
    if (stopped === null) return;
    const atMs = performance.now();
    const { itemId, playedMs } = stopped;
    report.stops.push({ atMs, itemId, playedMs });
    this.#conversation.cut(itemId, playedMs);
    const audioEndMs = Math.floor(playedMs);
    this.#sendQuietly({
      type: "conversation.item.truncate",
      item_id: itemId,
      content_index: 0,
      audio_end_ms: audioEndMs,
    });
    report.truncations.push({ atMs, itemId, audioEndMs });
    this.#showFloor();
  }

  #sendQuietly(event) {
    const id = this.#connection.send(event);
    if (id !== null) this.#quiet.add(id);
  }

  // --- what is shown --------------------------------------------------------------------------------------------

  #onPlayback({ itemId, playedMs }) {
    report.playedMs = playedMs;
    report.playedByItem[itemId] = playedMs;
    this.#showFloor();
  }

  #floor() {
    if (!this.#isOn) return "idle";
    if (this.#asksMicrophone) return "asking";
    if (!this.#hasSession) return "connecting";
    if (this.#conversation.userSpeaks) return "user";
    if (this.#speaker.itemId !== null) return "agent";
    if (this.#conversation.awaitsAnswer) return "thinking";
    return this.#hasMicrophone ? "listening" : "ready";
  }

  #showFloor() {
    const floor = this.#floor();
    if (floor === report.floor) return;
    report.floor = floor;
    this.#view.setFloor(floor);
  }

  /** Asks until the server is ready, then shows what runs there. */
  async #watchServer() {
    clearTimeout(this.#watch);
    const { status, body } = await ask("readyz", this.#apiKey);
    if (status === 200) {
      this.#view.setServer("ready", "Ready");
      await this.#showModels();
      return;
    }
    if (status === 0) this.#view.setServer("away", "The server does not answer");
    else this.#view.setServer("waiting", unreadyWords(body));
    this.#watch = setTimeout(() => this.#watchServer(), READY_POLL_MS);
  }
  #watch = 0;

  async #showModels() {
    const { status, body } = await ask("v1/models", this.#apiKey);
    if (status === 401 || status === 403) {
      this.#view.setServer("waiting", this.#apiKey ? "The API key was refused" : "An API key is needed");
      this.#view.askForKey();
      return;
    }
    const model = body?.data?.[0];
    if (model === undefined) return;
    const problem = model.resume?.store === "none" ? "" : model.resume?.problem;
    if (problem) this.#view.notify("store", { title: `Conversations do not outlive a lost connection now: ${problem}.` });
    else this.#view.dismiss("store");
    this.#view.setServer("ready", "Ready");
    this.#view.hideKeyForm();
    this.#view.showEngines(model.stages ?? []);
    this.#settings.offerVoices(model.voices ?? []);
  }
}

new App().start();
