/** What this browser remembers; where storage is switched off it forgets, and nothing else happens. */

/** @param {"localStorage" | "sessionStorage"} area */
export function recall(area, key) {
  try {
    return window[area].getItem(key);
  } catch {
    return null;
  }
}

/** @param {"localStorage" | "sessionStorage"} area */
export function keep(area, key, value) {
  try {
    window[area].setItem(key, value);
  } catch {
    // Storage is off: it holds for this visit.
  }
}
