// The way of one picture through the service: announce, send, ask until it is done.

import { call, limits, NoAnswer, reason, wait } from "./service.js";
import { forget, remember } from "./recent.js";
import { bytes, duration, sentence } from "./words.js";

/** So many pictures of this page are on their way at the same time; the others wait their turn here. */
const AT_ONCE = 3;
/** Milliseconds without an answer after which a job is given up on. */
const PATIENCE = 120_000;

const queue = [];
let running = 0;

/**
 * Have a picture made larger.
 *
 * Args:
 *   item: { file, name, width, height, ... }; gets job, state, words, and done: 0 to 1, undefined when unknown, null
 *     when nothing is being done.
 *   options: of the request.
 *   changed: called with the item whenever it changed.
 */
export function start(item, options, changed) {
  Object.assign(item, { options, job: null, error: "", done: undefined, stop: new AbortController() });
  enqueue(item, changed, async () => {
    await send(item, changed);
    await follow(item, changed);
  });
}

/** Go on asking for a job that an earlier visit started. */
export function resume(item, changed) {
  item.stop = new AbortController();
  enqueue(item, changed, () => follow(item, changed));
}

/** End it, wherever it is. */
export function cancel(item) {
  item.stop.abort(new DOMException("cancelled", "AbortError"));
}

/** Why a file cannot be sent, before it is; empty when nothing speaks against it. */
export function objection(item) {
  if (!item.file.size) return "This file is empty.";
  if (item.file.size > limits.bytes)
    return `Too large: ${bytes(item.file.size)}, and this service takes at most ${bytes(limits.bytes)}.`;
  if (item.width * item.height > limits.pixels)
    return `Too large: ${megapixels(item.width * item.height)}, and this service takes at most ${megapixels(limits.pixels)}.`;
  return "";
}

export const megapixels = pixels => `${Number((pixels / 1e6).toPrecision(3)).toLocaleString()}\u00a0megapixels`;

function enqueue(item, changed, work) {
  Object.assign(item, { state: "waiting", words: "Waiting for its turn" });
  changed(item);
  queue.push({ item, changed, work });
  next();
}

async function next() {
  if (running >= AT_ONCE || !queue.length) return;
  const { item, changed, work } = queue.shift();
  running++;
  try {
    item.stop.signal.throwIfAborted();
    await work();
    Object.assign(item, { state: "done", words: "Done" });
  } catch (error) {
    const cancelled = item.stop.signal.aborted || error.cancelled;
    if (cancelled && item.job) call("DELETE", `jobs/${item.job.id}`).catch(() => {});
    if (item.job) forget(item.job.id);
    Object.assign(item, cancelled ? { state: "cancelled", words: "Cancelled" } : { state: "failed", words: sentence(error.message) });
  }
  running--;
  changed(item);
  next();
}

async function send(item, changed) {
  tell(item, changed, "Beginning", null);
  const type = /^image\/[\w.+-]+$/.test(item.file.type) ? item.file.type : "application/octet-stream";
  const sides = item.width ? { width: item.width, height: item.height } : {};
  const wanted = { filename: item.file.name, content_type: type, bytes: item.file.size, options: item.options, ...sides };
  item.job = await call("POST", "jobs", wanted, { signal: item.stop.signal });
  remember(item.job.id, item.file.name);
  tell(item, changed, "Sending", 0);
  await upload(item, part => tell(item, changed, `Sending, ${Math.round(100 * part)}\u00a0%`, part));
}

function upload({ job, file, stop }, progress) {
  const form = new FormData();
  for (const [name, value] of Object.entries(job.upload.fields)) form.append(name, value);
  form.append("file", file);
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();  // fetch does not tell how much has been sent
    request.open(job.upload.method, job.upload.url);
    request.upload.onprogress = event => event.lengthComputable && progress(event.loaded / event.total);
    request.onload = () => request.status < 300 ? done() : failed(new Error(refusal(request)));
    request.onerror = () => failed(new Error("the picture could not be sent: is this machine connected? Try again"));
    request.onabort = () => failed(stop.signal.reason);
    stop.signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(form);
  });
}

/** The service answers in JSON, S3 in XML. */
function refusal(request) {
  try {
    return reason(request.status, JSON.parse(request.responseText));
  } catch {
    return "the storage did not accept the picture: try again";
  }
}

async function follow(item, changed) {
  let heard = Date.now();
  for (let pause = 250; ; pause = Math.min(2000, pause * 1.3)) {
    try {
      item.job = await call("GET", `jobs/${item.job.id}`, null, { signal: item.stop.signal });
      heard = Date.now();
      const { state, error } = item.job;
      if (state === "succeeded") return;
      if (state === "cancelled") throw Object.assign(new Error("cancelled"), { cancelled: true });
      if (state === "failed") throw new Error(error.message);
      if (state === "running") atWork(item, changed);
      else tell(item, changed, "Waiting for a free place", null);
    } catch (error) {
      const passing = error instanceof NoAnswer || error.status >= 500;
      if (!passing || Date.now() - heard > PATIENCE) throw error;
      tell(item, changed, "The service does not answer at the moment; asking again", null);
    }
    await wait(pause, item.stop.signal);
  }
}

/** Until the first tile is done, the estimate says how long it will take; then the tiles do. */
function atWork(item, changed) {
  const { progress: { done, total, at }, estimate, started } = item.job;
  if (item.seen?.done !== done) item.seen = { done, since: Date.now() };
  const since = (Date.now() - item.seen.since) / 1000;
  const tiles = total > 1 ? `, ${done} of ${total} tiles` : "";
  let left, part;
  if (done && done < total) {
    left = (Date.parse(at) - Date.parse(started)) / 1000 / done * (total - done) - since;
    part = done / total;
  } else if (estimate && !done) {
    left = estimate.seconds - since;
    part = Math.min(0.95, since / Math.max(0.1, estimate.seconds));
  }
  const time = left === undefined ? "" : left > 0 ? `, about ${duration(left)} left` : ", nearly there";
  tell(item, changed, `At work${tiles}${time}`, part);
}

function tell(item, changed, words, done) {
  Object.assign(item, { state: "working", words, done });
  changed(item);
}
