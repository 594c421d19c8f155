// The jobs that this browser started in the last day, so that a reload loses nothing. Only ids and names are kept.

const NAME = `upscaler jobs ${location.pathname}`;  // several services may share an origin
const DAY = 24 * 3600 * 1000;
const MOST = 100;

export function recent() {
  try {
    const found = JSON.parse(localStorage.getItem(NAME)) ?? [];
    return found.filter(entry => Date.now() - entry.at < DAY);
  } catch {
    return [];  // storage is off, or somebody wrote nonsense into it
  }
}

function store(entries) {
  try {
    localStorage.setItem(NAME, JSON.stringify(entries.slice(0, MOST)));
  } catch { /* private windows may refuse: then nothing is listed after a reload */ }
}

export const remember = (id, name) => store([{ id, name, at: Date.now() }, ...recent()]);
export const forget = id => store(recent().filter(entry => entry.id !== id));
