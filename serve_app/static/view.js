/** The page: turns state into elements. It asks nothing of the server and keeps no truth of its own. */

import { latencyChart, rescale } from "./latency.js";
import { FLOOR_WORDS } from "./words.js";

const $ = (id) => document.getElementById(id);
const STAGE_NAMES = { vad: "Notices speech", stt: "Transcribes", llm: "Thinks", tts: "Speaks" };

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export class View {
  #rows = new Map();
  #drawnLatency = new WeakMap();

  /** @param {string} floor a key of FLOOR_WORDS */
  setFloor(floor) {
    const isOn = floor !== "idle";
    $("talk").dataset.floor = floor;
    $("talk-label").textContent = isOn ? "Stop" : "Talk";
    if ($("floor").textContent !== FLOOR_WORDS[floor]) $("floor").textContent = FLOOR_WORDS[floor];
    if (!isOn) this.setLevel(0);
  }

  /** @param {number} rms in [0, 1]; shown on a scale of decibels, -60 to 0 */
  setLevel(rms) {
    const share = rms > 0 ? Math.max(0, Math.min(1, 1 + Math.log10(rms) / 3)) : 0;
    $("talk").style.setProperty("--level", share.toFixed(2));
    $("level").style.setProperty("--level", share.toFixed(2));
    $("level").setAttribute("aria-valuenow", String(Math.round(share * 100)));
  }

  /** @param {"unknown" | "ready" | "waiting" | "away"} state */
  setServer(state, words) {
    $("server-state").dataset.state = state;
    if ($("server-state").textContent !== words) $("server-state").textContent = words;
  }

  /** @param {import("./conversation.js").Entry} entry */
  showEntry(entry) {
    $("empty").hidden = true;
    if (entry.status === "removed") {
      this.#rows.get(entry)?.remove();
      this.#rows.delete(entry);
      return;
    }
    const wasAtEnd = this.#isAtEnd();
    const row = this.#rows.get(entry) ?? this.#addRow(entry);
    row.dataset.status = entry.status;
    row.setAttribute("aria-busy", String(entry.status === "growing"));
    row.querySelector(".words").replaceChildren(...this.#words(entry));
    row.querySelector(".note").textContent = entry.note;
    if (entry.latency !== null) this.#showLatency(row, entry);
    if (wasAtEnd) row.scrollIntoView({ block: "nearest" });
  }

  #addRow(entry) {
    const row = element("li", `entry ${entry.role}`);
    row.dataset.item = entry.id;
    row.append(element("p", "who", entry.role === "user" ? "You" : "Agent"));
    row.append(element("p", "words"), element("p", "note"));
    this.#rows.set(entry, row);
    $("log").append(row);
    return row;
  }

  #words(entry) {
    if (entry.text === "" && entry.status === "growing") return [element("span", "waiting", "…")];
    if (entry.heardChars === null || entry.heardChars >= entry.text.length) return [entry.text];
    const heard = entry.text.slice(0, entry.heardChars);
    const rest = entry.text.slice(entry.heardChars);
    const unheard = element("s", "unheard", rest.trimStart());
    unheard.title = "Not heard: you interrupted";
    return [heard, rest.slice(0, rest.length - rest.trimStart().length), unheard];
  }

  #showLatency(row, entry) {
    if (this.#drawnLatency.get(row) === entry.latency) return;
    this.#drawnLatency.set(row, entry.latency);
    const chart = latencyChart(entry.latency);
    $("log").querySelectorAll(".latency[open]").forEach((older) => older.removeAttribute("open"));
    chart.open = true;
    row.append(chart);
    rescale($("log"));
  }

  #isAtEnd() {
    const last = $("log").lastElementChild;
    return last === null || last.getBoundingClientRect().top < window.innerHeight;
  }

  /** A new conversation begins below what was said before. */
  divide() {
    if ($("log").lastElementChild?.matches(".entry")) $("log").append(element("li", "divider", "new conversation"));
  }

  /**
   * Shows a note until it is dismissed; one of the same key replaces it.
   * @param {string} key
   * @param {import("./words.js").Words} words
   */
  notify(key, { title, remedy }) {
    this.dismiss(key);
    const note = element("div", "notice");
    note.dataset.key = key;
    note.setAttribute("role", "alert");
    const text = element("p", "", title);
    if (remedy) text.append(" ", element("span", "remedy", remedy));
    const close = element("button", "close", "×");
    close.type = "button";
    close.setAttribute("aria-label", "Dismiss");
    close.addEventListener("click", () => note.remove());
    note.append(text, close);
    $("notices").append(note);
  }

  dismiss(...keys) {
    for (const key of keys) $("notices").querySelector(`[data-key="${key}"]`)?.remove();
  }

  askForKey() {
    $("key-form").hidden = false;
    $("api-key").focus();
  }

  hideKeyForm() {
    $("key-form").hidden = true;
  }

  /** @param {{stage: string, engine?: string, model?: string, reason?: string, remedy?: string, error?: string}[]} stages */
  showEngines(stages) {
    $("engines").replaceChildren(...stages.map((stage) => this.#engine(stage)));
  }

  #engine({ stage, engine, model, reason, remedy, error }) {
    const row = element("div", reason || error ? "fallback" : "");
    const running = element("dd", "running", engine ?? error);
    if (model && model !== engine) running.append(" ", element("span", "model", model));
    row.append(element("dt", "", STAGE_NAMES[stage] ?? stage), running);
    if (reason) row.append(element("dd", "reason", reason));
    if (remedy) row.append(element("dd", "remedy", `Remedy: ${remedy}`));
    return row;
  }
}
