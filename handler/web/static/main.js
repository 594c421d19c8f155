// What the page is about: pictures that somebody chose, what to make of them, and their results.

import { dropped, folderOf, isPicture } from "./choose.js";
import { forget, recent } from "./recent.js";
import * as rows from "./rows.js";
import { call, limits } from "./service.js";
import { compare, frame } from "./view.js";
import { bytes, count, duration, pixels, sentence } from "./words.js";
import { cancel, megapixels, objection, resume, start } from "./work.js";
import { zip } from "./zip.js";

const $ = id => document.getElementById(id);
/** Pictures that this browser cannot show are previewed by the service; only so many of a folder. */
const PREVIEWS = 12;
/** Larger results are not fetched only for the small picture in the list. */
const THUMB_BYTES = 4e6;

let items = [], earlier = [], shown = null, asked = 0, previewed = 0;

// ---------------------------------------------------------------- Choosing

async function choose(files) {
  const found = [...files].filter(isPicture);
  const others = files.length - found.length;
  say(others ? `${count(others, "file is", "files are")} left out: no picture in a format that is read.` : "");
  const fresh = found.map(file => ({
    file, name: file.name, folder: folderOf(file), facts: bytes(file.size), state: "ready", words: "", url: URL.createObjectURL(file),
  }));
  for (const item of fresh) {
    items.push(item);
    rows.add($("list"), item, acts);
    check(item);
  }
  refresh();
  for (const item of fresh) await look(item);
}

/** Find out the sides of a picture, and something to show of it. */
async function look(item) {
  const image = new Image();
  image.src = item.url;
  await image.decode().catch(() => {});
  if (image.naturalWidth) {
    Object.assign(item, { width: image.naturalWidth, height: image.naturalHeight, thumb: item.url, was: item.url });
  } else if (item.file.size <= limits.preview_bytes && previewed < PREVIEWS && item.state === "ready") {
    previewed++;
    await preview(item);
  }
  if (item.width) item.facts = `${pixels(item.width, item.height)}, ${bytes(item.file.size)}`;
  check(item);
  rows.draw(item);
  refresh();
}

async function preview(item) {
  const form = new FormData();
  form.append("file", item.file);
  try {
    const read = async answer => {
      item.width = Number(answer.headers.get("X-Picture-Width"));
      item.height = Number(answer.headers.get("X-Picture-Height"));
      return answer.blob();
    };
    item.thumb = item.was = URL.createObjectURL(await call("POST", "preview", form, { read }));
  } catch (error) {
    if (error.status === 400 && item.state === "ready") Object.assign(item, { state: "failed", words: sentence(error.message), bad: true });
  }
}

function check(item) {
  const words = objection(item);
  if (words && item.state === "ready") Object.assign(item, { state: "failed", words, bad: true });
  rows.draw(item);
}

// ---------------------------------------------------------------- What to make of them

function options() {
  const chosen = {};
  const number = id => Number($(id).value);
  if ($("scale").value !== "exact") chosen.scale = number("scale");
  else for (const side of ["width", "height"]) if ($(side).value) chosen[side] = number(side);
  if ($("format").value) chosen.format = $("format").value;
  if ($("quality").value && !$("quality-field").hidden) chosen.quality = number("quality");
  if ($("model").value) chosen.model = $("model").value;
  return chosen;
}

const exactWithoutSides = () => $("scale").value === "exact" && !$("width").value && !$("height").value;

/** What a press of the button would begin: what is new, or else what is done already if the choices have changed. */
function startable() {
  const fresh = items.filter(item => item.state === "ready" && !item.bad);
  if (fresh.length) return fresh;
  const now = JSON.stringify(options());
  const tried = new Set(items.filter(item => item.state !== "failed" && JSON.stringify(item.options) === now).map(item => item.file));
  return [...new Map(items.filter(item => item.state === "done" && !tried.has(item.file)).map(item => [item.file, item])).values()];
}

function refresh() {
  const ready = exactWithoutSides() ? [] : startable();
  $("go").disabled = !ready.length;
  const again = ready.length && ready[0].state === "done";
  $("go").textContent = ready.length > 1 ? `Enlarge ${ready.length} pictures` : again ? "Enlarge again" : "Enlarge";
  $("pictures").hidden = !items.length;
  $("earlier").hidden = !earlier.length;
  document.body.classList.toggle("busy", items.length > 0);
  $("zip").hidden = items.filter(item => item.state === "done").length < 2;
  clearTimeout(refresh.timer);
  refresh.timer = setTimeout(() => estimate(ready), 250);
}

/** One question for many pictures: the work grows with their pixels. */
async function estimate(ready) {
  const mine = ++asked;
  const known = ready.filter(item => item.width);
  if (!known.length) {
    $("estimate").textContent = "";
    return;
  }
  const area = item => item.width * item.height;
  const largest = known.reduce((one, other) => area(other) > area(one) ? other : one);
  const ask = JSON.stringify({ width: largest.width, height: largest.height, options: options() });
  try {
    if (estimate.ask !== ask) Object.assign(estimate, { found: await call("POST", "estimate", JSON.parse(ask), { tries: 2 }), ask });
    if (mine !== asked) return;
    const { width, height, seconds } = estimate.found;
    const all = seconds / area(largest) * known.reduce((sum, item) => sum + area(item), 0);
    $("estimate").textContent = ready.length === 1
      ? `${pixels(width, height)}, about ${duration(all)}` : `about ${duration(all)} in all`;
    if (estimate.said) say("");
    estimate.said = false;
  } catch (error) {
    if (mine !== asked) return;
    $("estimate").textContent = "";
    say((ready.length > 1 ? `${largest.name}: ` : "") + sentence(error.message));
    estimate.said = true;
  }
}

async function listModels() {
  const found = await call("GET", "models");
  const group = (label, some) => {
    if (!some.length) return;
    const node = Object.assign(document.createElement("optgroup"), { label });
    node.append(...some.map(model => new Option(`${model.name}: ${model.about}`, model.name)));
    $("model").append(node);
  };
  group("Ready to use", found.filter(model => model.embedded));
  group("Downloaded when first used, and slower", found.filter(model => !model.embedded));
}

function describeModel() {
  const name = $("model").value;
  $("about").textContent = name
    ? $("model").selectedOptions[0].textContent.replace(`${name}: `, "").replace(/^./, letter => letter.toUpperCase()) + "."
    : "The one that fits each picture: another for JPEGs from a camera than for clean drawings and screenshots.";
}

// ---------------------------------------------------------------- Work

function begin(some) {
  say("");
  for (let item of some) {
    if (item.state === "done") {  // the earlier result stays in the list
      const { file, name, folder, url, was, thumb, width, height, facts } = item;
      item = { file, name, folder, url, was, thumb, width, height, facts, state: "ready", words: "" };
      items.push(item);
      rows.add($("list"), item, acts);
    }
    item.alone = some.length === 1;
    start(item, options(), changed);
  }
  refresh();
}

function changed(item) {
  if (item.state === "done") finished(item);
  if (item.state === "failed") announce(`${item.name}: ${item.words}`);
  rows.draw(item);
  if (["done", "failed", "cancelled"].includes(item.state)) refresh();
}

function finished(item) {
  const { output } = item.job;
  item.words = `Done: ${pixels(output.width, output.height)}, ${bytes(output.bytes)}`;
  announce(`${item.name} is done: ${pixels(output.width, output.height)}.`);
  const free = [document.body, $("go"), null].includes(document.activeElement) || rows.holds(item);
  // What somebody is looking at stays; the first result is shown, and one that was the only one asked for.
  if (!shown || (item.alone && !$("view").matches(":hover, :focus-within"))) show(item, free);
}

const acts = {
  cancel,
  again: item => { start(item, options(), changed); refresh(); },
  show: item => show(item, true),
  save,
  remove(item) {
    if (item.job) forget(item.job.id);
    rows.remove(item);
    items = items.filter(other => other !== item);
    earlier = earlier.filter(other => other !== item);
    if (shown === item) {
      shown = null;
      $("result").hidden = true;
    }
    if (item.url && !items.some(other => other.url === item.url)) URL.revokeObjectURL(item.url);
    refresh();
  },
};

// ---------------------------------------------------------------- Results

/** A link lives for a while only, so a fresh one is asked for each time. */
async function renew(item) {
  item.job = await call("GET", `jobs/${item.job.id}`);
  if (!item.job.result_url) throw new Error("this result has expired");
  return item.job;
}

async function show(item, focus) {
  shown = item;
  rows.mark([...items, ...earlier], item);
  const { output, model_used, degraded, model } = item.job;
  $("result").hidden = false;
  $("result-title").textContent = output.name;
  $("made").textContent = `${pixels(output.width, output.height)}, ${bytes(output.bytes)}, made by ${model_used}` +
    (degraded ? ` because ${model || "the usual model"} could not be had` : "");
  frame(output.width, output.height);
  if (focus) {
    $("result-title").focus({ preventScroll: true });
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    $("result").scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
  }
  try {
    if (item.file && !item.was && item.file.size <= limits.preview_bytes) await preview(item);
    const { result_url } = await renew(item);
    if (shown !== item) return;
    if (await compare(result_url, item.was) || shown !== item) return;
    // The browser cannot show this format; the service has a picture of it that it can.
    const blob = await call("GET", `jobs/${item.job.id}/preview`, null, { read: answer => answer.blob() }).catch(() => null);
    if (blob && shown === item) await compare(URL.createObjectURL(blob), item.was);
  } catch (error) {
    if (shown === item) say(sentence(error.message));
  }
}

async function save(item) {
  try {
    const { result_url, output } = await renew(item);
    download(result_url, output.name);
  } catch (error) {
    say(sentence(error.message));
  }
}

function download(address, name) {
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

async function saveAll() {
  const done = items.filter(item => item.state === "done");
  const words = $("zip").textContent;
  $("zip").disabled = true;
  say("");
  try {
    const files = [];
    for (const item of done) {
      $("zip").textContent = `Fetching ${files.length + 1} of ${done.length}`;
      const { result_url, output } = await renew(item);
      const answer = await fetch(result_url);
      if (!answer.ok) throw new Error(`${output.name} could not be fetched: download the pictures one by one`);
      files.push({ name: item.folder + output.name, blob: await answer.blob() });
    }
    const address = URL.createObjectURL(await zip(files));
    download(address, "larger-pictures.zip");
    setTimeout(() => URL.revokeObjectURL(address), 600_000);
    announce("The ZIP is ready.");
  } catch (error) {
    say(error instanceof RangeError
      ? "All of this is too much for one ZIP: download the pictures one by one." : sentence(error.message));
  }
  $("zip").textContent = words;
  $("zip").disabled = false;
}

/** What this browser started in the last day. */
async function recall() {
  for (const { id, name } of recent()) {
    const job = await call("GET", `jobs/${id}`).catch(error => error);
    if (job.status === 404 || job.state === "awaiting_upload") forget(id);  // its file was in the page that is gone
    if (!["queued", "running", "succeeded"].includes(job.state)) continue;
    const item = { job, name, folder: "", facts: "", words: "", state: "ready" };
    earlier.push(item);
    rows.add($("earlier-list"), item, acts);
    if (job.state === "succeeded") {
      item.state = "done";
      if (job.output.bytes < THUMB_BYTES) item.thumb = job.result_url;
      item.words = `${pixels(job.output.width, job.output.height)}, ${bytes(job.output.bytes)}`;
      rows.draw(item);
    } else resume(item, changed);
    refresh();
  }
}

// ---------------------------------------------------------------- The page

function say(text) {
  $("error").textContent = text;
}

function announce(text) {
  $("live").textContent = text;
}

function choicesChanged() {
  const exact = $("scale").value === "exact";
  $("exact").hidden = !exact;
  $("quality-field").hidden = ["png", "tiff", "bmp"].includes($("format").value);
  describeModel();
  refresh();
}

$("limits").textContent = `${limits.readable}: up to ${bytes(limits.bytes)} and ${megapixels(limits.pixels)} each`;
$("form").onsubmit = event => { event.preventDefault(); if (!$("go").disabled) begin(startable()); };
$("form").oninput = event => { if (event.target.type !== "file") choicesChanged(); };
$("choose").onclick = event => { event.stopPropagation(); $("files").click(); };
$("choose-folder").onclick = event => { event.stopPropagation(); $("folder").click(); };
$("drop").onclick = event => { if (!event.target.closest("button")) $("files").click(); };
for (const id of ["files", "folder"]) {
  $(id).onchange = () => {
    choose([...$(id).files]);
    $(id).value = "";  // the same file can be chosen again
  };
}
$("sample").onclick = async event => {
  event.stopPropagation();
  const blob = await (await fetch("static/sample.jpg")).blob();
  await choose([new File([blob], "sample.jpg", { type: "image/jpeg" })]);
  begin(startable());
};
$("zip").onclick = saveAll;
$("save").onclick = () => save(shown);
addEventListener("paste", event => { if (event.clipboardData.files.length) choose([...event.clipboardData.files]); });
addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", event => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", async event => {
  event.preventDefault();
  $("drop").classList.remove("over");
  choose(await dropped(event.dataTransfer));
});
addEventListener("beforeunload", event => {
  // Results are found again after a reload; what is not sent yet is not.
  if (items.some(item => item.state === "waiting" || (item.state === "working" && item.job?.state === "awaiting_upload"))) event.preventDefault();
});

choicesChanged();
listModels().catch(error => say(sentence(error.message)));
recall();
