/** The bar of a turn: where the milliseconds between the end of speech and the first sound went. */

import { STAGES } from "./conversation.js";

const STAGE_WORDS = {
  endpointing: "waiting for the end",
  stt: "transcript",
  llm_ttft: "model's first word",
  first_segment: "first clause",
  tts_ttfb: "voice's first sound",
  overhead: "on the way",
};

const round = (ms) => Math.round(ms).toLocaleString("en");

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function bar(latency) {
  const made = element("span", "bar");
  made.style.setProperty("--total", String(Math.max(1, latency.totalMs)));
  for (const { name, ms } of latency.stages.filter((stage) => stage.ms > 0)) {
    const part = element("span", `part stage-${name}`);
    part.style.flexGrow = String(ms);
    part.title = `${STAGE_WORDS[name]}: ${round(ms)} ms`;
    made.append(part);
  }
  return made;
}

function legend(latency) {
  const list = element("dl", "legend");
  for (const { name, ms } of latency.stages) {
    const pair = element("div", `stage-${name}`);
    pair.append(element("dt", "", STAGE_WORDS[name]), element("dd", "", `${round(ms)} ms`));
    list.append(pair);
  }
  return list;
}

/**
 * A bar that opens to its legend with numbers. All bars of a page share one scale, see `rescale`.
 * @param {import("./conversation.js").Latency} latency
 */
export function latencyChart(latency) {
  const chart = element("details", "latency");
  const summary = element("summary", "");
  const words = STAGES.map((name, i) => `${STAGE_WORDS[name]} ${round(latency.stages[i].ms)}`).join(", ");
  summary.setAttribute("aria-label", `Answered in ${round(latency.totalMs)} milliseconds: ${words}`);
  const track = element("span", "track");
  track.append(bar(latency));
  summary.append(track, element("span", "total", `${round(latency.totalMs)} ms`));
  chart.append(summary, legend(latency));
  chart.dataset.totalMs = String(latency.totalMs);
  return chart;
}

/** Longest turn = full width, so that turns can be compared at a glance. @param {HTMLElement} log */
export function rescale(log) {
  const totals = [...log.querySelectorAll(".latency")].map((chart) => Number(chart.dataset.totalMs));
  log.style.setProperty("--scale", String(Math.max(500, ...totals)));
}
