/** What the page says when something is not as it should be: what happened, then what to do about it. */

/** @typedef {{title: string, remedy?: string}} Words */

export const FLOOR_WORDS = {
  idle: "Press to talk",
  asking: "Allow the microphone",
  connecting: "Connecting …",
  listening: "Listening",
  user: "You are speaking",
  thinking: "Thinking …",
  agent: "The agent is speaking",
  ready: "Connected, microphone off",
};

function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/** @returns {Words | null} why this page can have no microphone at all; null if it may ask for one */
export function insecureWords() {
  if (window.isSecureContext && navigator.mediaDevices) return null;
  const port = location.port || "80";
  return {
    title: "Your browser gives no microphone to a page that came from another machine without encryption.",
    remedy:
      "Open it by https, or forward the port and open it as localhost: " +
      `ssh -L ${port}:localhost:${port} ${location.hostname}, then http://localhost:${port}. Writing works here as well.`,
  };
}

/** @param {DOMException} error of getUserMedia @returns {Words} */
export function microphoneWords(error) {
  switch (error.name) {
    case "NotAllowedError":
    case "SecurityError":
      return {
        title: "The microphone was refused.",
        remedy: "Allow it in the address bar (the icon left of the address), then press Talk again. Or write below.",
      };
    case "NotFoundError":
    case "OverconstrainedError":
      return { title: "No microphone was found.", remedy: "Plug one in and press Talk again. Or write below." };
    case "NotReadableError":
    case "AbortError":
      return {
        title: "The microphone could not be opened.",
        remedy: "Another program may be using it: close that and press Talk again. Or write below.",
      };
    default:
      return { title: `The sound could not be started (${error.name}: ${error.message}).`, remedy: "Or write below." };
  }
}

/** @returns {Words} while a session is looked for whose connection was lost */
export function resumingWords({ code }) {
  if (code === 1012) return { title: "The conversation moves to another server …" };
  return { title: "The connection was lost. Looking for the conversation …" };
}

/** @returns {Words} a session that could not be found again */
export function lostWords() {
  return { title: "The connection was lost, and this conversation with it.", remedy: "Press Talk for a new one." };
}

/** @returns {Words} why a connection ended that we did not end */
export function closeWords({ code, reason, wasOpen }) {
  switch (code) {
    case 1000:
      return { title: sentence(reason || "The server ended the conversation"), remedy: "Press Talk for a new one." };
    case 1001:
    case 1012:
      return { title: sentence(reason || "The server is restarting"), remedy: "Press Talk in a moment." };
    case 1008:
      return { title: sentence(reason || "The server refused the connection") };
    case 1011:
      return { title: sentence(reason || "Something failed in the server"), remedy: "Press Talk to start again." };
    case 1013:
      return {
        title: /full/i.test(reason) ? sentence(reason) : `The server is full. ${reason && sentence(reason)}`.trim(),
        remedy: "Press Talk to try again.",
      };
    default:
      if (wasOpen) {
        return lostWords();
      }
      return { title: reason ? sentence(reason) : "The server could not be reached.", remedy: "Press Talk to try again." };
  }
}

/** @param {object | null} body of /readyz @returns {string} */
export function unreadyWords(body) {
  const names = { vad: "speech detection", stt: "transcription", llm: "the language model", tts: "the voice" };
  const stages = Object.entries(body?.stages ?? {})
    .filter(([, why]) => typeof why === "string" && why !== "ready")
    .map(([stage, why]) => `${names[stage] ?? stage}: ${why}`);
  return stages.length > 0 ? `Starting — ${stages.join("; ")}` : "Starting …";
}
