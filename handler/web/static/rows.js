// The list: one row for each picture, with its state and what can be done with it.

const $ = id => document.getElementById(id);
const rows = new WeakMap();

/** What can be done in which state. */
const ACTS = {
  ready: ["remove"],
  waiting: ["cancel"],
  working: ["cancel"],
  done: ["show", "save", "remove"],
  failed: ["again", "remove"],
  cancelled: ["again", "remove"],
};

/** Put a picture at the end of a list; `acts` has a function of the item for each thing that can be done. */
export function add(list, item, acts) {
  const row = $("row").content.firstElementChild.cloneNode(true);
  row.querySelector(".name").textContent = item.folder + item.name;
  for (const button of row.querySelectorAll("button")) {
    button.setAttribute("aria-label", `${button.textContent} ${item.name}`);
    button.onclick = () => acts[button.dataset.act](item);
  }
  const image = row.querySelector(".thumb");
  image.onerror = () => image.removeAttribute("src");
  rows.set(item, row);
  list.append(row);
  draw(item);
}

export function draw(item) {
  const row = rows.get(item);
  if (!row) return;
  const held = row.contains(document.activeElement);
  row.dataset.state = item.state;
  row.querySelector(".facts").textContent = item.facts;
  row.querySelector(".state").textContent = item.words;
  const image = row.querySelector(".thumb");
  if (item.thumb && image.dataset.of !== item.thumb) Object.assign(image, { src: item.thumb }).dataset.of = item.thumb;
  const bar = row.querySelector("progress");
  bar.hidden = item.state !== "working" || item.done === null;
  bar.setAttribute("aria-label", `Progress of ${item.name}`);
  if (item.done === undefined) bar.removeAttribute("value"); else bar.value = item.done;
  for (const button of row.querySelectorAll("button")) {
    const act = button.dataset.act;
    button.hidden = !ACTS[item.state].includes(act) || (act === "again" && (!item.file || item.bad));
    if (act === "show" && item.state === "done") {
      button.textContent = item.file ? "Compare" : "Show";
      button.setAttribute("aria-label", `${button.textContent} ${item.name}`);
    }
  }
  // The button that somebody pressed may be gone: the keyboard goes on where it was.
  if (held && !row.contains(document.activeElement)) row.querySelector("button:not([hidden])")?.focus();
}

/** Mark the row whose result is on show. */
export function mark(items, shown) {
  for (const item of items) {
    if (item === shown) rows.get(item)?.setAttribute("aria-current", "true");
    else rows.get(item)?.removeAttribute("aria-current");
  }
}

/** Take a row away; the keyboard goes on at the next one. */
export function remove(item) {
  const row = rows.get(item);
  const held = row.contains(document.activeElement);
  const next = row.nextElementSibling ?? row.previousElementSibling;
  row.remove();
  if (held) (next?.querySelector("button:not([hidden])") ?? $("choose")).focus();
}

/** Whether the keyboard is in this row. */
export const holds = item => Boolean(rows.get(item)?.contains(document.activeElement));
