/**
 * Instructions, voice and language: what the person set here, over what the server says.
 *
 * Kept in localStorage, so that the next visit begins with it; an empty field means the server's own value.
 */

import { keep, recall } from "./storage.js";

const STORAGE_KEY = "voice-serve.settings";
const EMPTY = { instructions: "", voice: "", language: "" };
const LANGUAGES = {
  en: "English", ar: "العربية", cs: "Čeština", da: "Dansk", de: "Deutsch", el: "Ελληνικά", es: "Español",
  fi: "Suomi", fr: "Français", he: "עברית", hi: "हिन्दी", hu: "Magyar", id: "Indonesia", it: "Italiano", ja: "日本語",
  ko: "한국어", nl: "Nederlands", no: "Norsk", pl: "Polski", pt: "Português", ro: "Română", ru: "Русский",
  sv: "Svenska", tr: "Türkçe", uk: "Українська", vi: "Tiếng Việt", zh: "中文",
};

const $ = (id) => document.getElementById(id);

function stored() {
  try {
    return { ...EMPTY, ...JSON.parse(recall("localStorage", STORAGE_KEY) ?? "{}") };
  } catch {
    return { ...EMPTY }; // what lies there is not ours
  }
}

export class Settings {
  #values = stored();
  #server = { ...EMPTY };
  #onApply;

  /** @param {() => void} onApply the person changed something */
  constructor(onApply) {
    this.#onApply = onApply;
    for (const [code, name] of Object.entries(LANGUAGES)) $("language").append(new Option(name, code));
    $("settings").addEventListener("input", () => this.#markChanged());
    $("settings").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#apply({ instructions: $("instructions").value.trim(), voice: $("voice").value, language: $("language").value });
    });
    $("reset").addEventListener("click", () => this.#apply({ ...EMPTY }));
    this.#fill();
  }

  get isEmpty() {
    return Object.values(this.#values).every((value) => value === "");
  }

  /** @param {string[]} voices */
  offerVoices(voices) {
    $("voice").replaceChildren($("voice").options[0], ...voices.map((voice) => new Option(voice, voice)));
    this.#fill();
  }

  /** What the server would use by itself. @param {object} session of session.created */
  setServer(session) {
    const language = session.audio?.input?.transcription?.language;
    this.#server = {
      instructions: session.instructions ?? "",
      voice: session.audio?.output?.voice ?? "",
      language: language ?? "",
    };
    if (this.#server.instructions) $("instructions").placeholder = this.#server.instructions;
  }

  /** @returns {object} the `session` of a session.update; an empty field goes back to the server's own value */
  session() {
    const wanted = (key) => this.#values[key] || this.#server[key];
    const session = { type: "realtime", instructions: wanted("instructions"), audio: {} };
    session.audio.input = { transcription: { language: wanted("language") || null } };
    if (wanted("voice")) session.audio.output = { voice: wanted("voice") };
    return session;
  }

  /** @param {string} words */
  say(words) {
    $("settings-state").textContent = words;
  }

  #apply(values) {
    this.#values = values;
    keep("localStorage", STORAGE_KEY, JSON.stringify(values));
    this.#fill();
    this.say("Saved.");
    this.#onApply();
  }

  #fill() {
    $("instructions").value = this.#values.instructions;
    $("language").value = this.#values.language;
    this.#keepVoice(this.#values.voice);
    $("apply").disabled = true;
  }

  /** A saved voice that this server does not offer is shown all the same: its refusal is then understood. */
  #keepVoice(voice) {
    const known = [...$("voice").options].some((option) => option.value === voice);
    if (!known) $("voice").append(new Option(voice, voice));
    $("voice").value = voice;
  }

  #markChanged() {
    $("apply").disabled = false;
    this.say("");
  }
}
