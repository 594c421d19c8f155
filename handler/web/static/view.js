// The comparison: two pictures on top of each other, a border to slide, zoom and panning.
//
// All lengths are CSS pixels of the view, but for the picture's own sides. `scale` is CSS pixels for each pixel of the
// result, so actual size is one divided by the device's pixel ratio.

const $ = id => document.getElementById(id);
const MOST = 8;  // device pixels for a pixel of the result
const STEP = 1.25;

const view = $("view"), handle = $("handle"), after = $("after"), before = $("before");
let sides = null, scale = 1, x = 0, y = 0, border = 0.5, fitted = true;

const actual = () => 1 / devicePixelRatio;
const fit = () => Math.min(view.clientWidth / sides.width, tallest() / sides.height, actual());
const tallest = () => Math.max(160, Math.min(innerHeight * 0.75, innerHeight - 190));
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** Make room for a result of some sides, before there is anything to show. */
export function frame(width, height) {
  sides = { width, height };
  border = 0.5;
  fitted = true;
  after.removeAttribute("src");
  before.removeAttribute("src");
  view.classList.remove("compared");
  $("unseen-picture").hidden = true;
  draw();
}

/** Show a result in its frame, beside what it was made of: addresses, `was` empty where there is none to show. */
export async function compare(made, was) {
  const shown = await load(after, made);
  $("unseen-picture").hidden = shown;
  view.classList.toggle("compared", shown && Boolean(was) && await load(before, was));
  draw();
  return shown;
}

const load = (image, address) => new Promise(done => {
  image.onload = () => done(true);
  image.onerror = () => { image.removeAttribute("src"); done(false); };
  if (address) image.src = address; else done(false);
});

function draw() {
  if (!sides) return;
  if (fitted) scale = fit();
  view.style.height = `${Math.round(Math.max(96, Math.min(tallest(), sides.height * Math.max(fit(), fitted ? 0 : Math.min(scale, actual())))))}px`;
  const width = sides.width * scale, height = sides.height * scale;
  x = settle(x, width, view.clientWidth);
  y = settle(y, height, view.clientHeight);
  for (const image of [after, before]) {
    image.style.width = `${width}px`;
    image.style.height = `${height}px`;
    image.style.transform = `translate(${x}px, ${y}px)`;
  }
  const left = Math.max(0, x), right = Math.min(view.clientWidth, x + width);
  view.style.setProperty("--left", `${left}px`);
  view.style.setProperty("--right", `${view.clientWidth - right}px`);
  view.style.setProperty("--at", `${left + border * (right - left)}px`);
  view.classList.toggle("zoomed", width > view.clientWidth + 1 || height > view.clientHeight + 1);
  const part = Math.round(100 * border);
  handle.setAttribute("aria-valuenow", part);
  handle.setAttribute("aria-valuetext", `${part} % before, ${100 - part} % after`);
  $("percent").value = `${Math.round(100 * scale / actual())}\u00a0%`;
  $("fit").setAttribute("aria-pressed", fitted);
  $("actual").setAttribute("aria-pressed", Math.abs(scale / actual() - 1) < 0.001);
  $("in").disabled = scale >= MOST * actual() * 0.999;
  $("out").disabled = scale <= fit() * 1.001;
}

/** Where a picture begins: in the middle when there is room, else so that no gap is seen at its edges. */
const settle = (at, size, room) => size <= room ? (room - size) / 2 : clamp(at, room - size, 0);

/** Zoom so that what lies under a point of the view stays there. */
function zoom(to, atX = view.clientWidth / 2, atY = view.clientHeight / 2) {
  const old = scale;
  scale = clamp(to, fit(), MOST * actual());
  fitted = scale <= fit() * 1.001;
  x = atX - (atX - x) * scale / old;
  y = atY - (atY - y) * scale / old;
  draw();
}

function move(byX, byY) {
  x += byX;
  y += byY;
  draw();
}

function slide(to) {
  border = clamp(to, 0, 1);
  draw();
}

view.addEventListener("wheel", event => {
  const to = clamp(scale * Math.exp(-event.deltaY * (event.deltaMode ? 20 : 1) * (event.ctrlKey ? 0.01 : 0.002)), fit(), MOST * actual());
  if (Math.abs(to / scale - 1) < 1e-6 && !event.ctrlKey) return;  // nothing to zoom: the page scrolls on
  event.preventDefault();
  const box = view.getBoundingClientRect();
  zoom(to, event.clientX - box.left, event.clientY - box.top);
}, { passive: false });

// One finger or the mouse pans where there is something to pan, two fingers pinch; only the handle slides.
const fingers = new Map();
view.addEventListener("pointerdown", event => {
  if (handle.contains(event.target) || event.button) return;
  fingers.set(event.pointerId, event);
  view.classList.add("dragging");
  if (view.classList.contains("zoomed") || fingers.size > 1) view.setPointerCapture(event.pointerId);
});
view.addEventListener("pointermove", event => {
  const last = fingers.get(event.pointerId);
  if (!last) return;
  fingers.set(event.pointerId, event);
  const other = [...fingers.values()].find(finger => finger.pointerId !== event.pointerId);
  if (other) {
    const box = view.getBoundingClientRect();
    const apart = finger => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY) || 1;
    zoom(scale * apart(event) / apart(last), (event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top);
    move((event.clientX - last.clientX) / 2, (event.clientY - last.clientY) / 2);
  } else if (view.classList.contains("zoomed")) {
    move(event.clientX - last.clientX, event.clientY - last.clientY);
  }
});
const lifted = event => {
  fingers.delete(event.pointerId);
  if (!fingers.size) view.classList.remove("dragging");
};
for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) view.addEventListener(name, lifted);
addEventListener("pointerup", lifted);
view.addEventListener("dblclick", event => {
  const box = view.getBoundingClientRect();
  zoom(fitted ? actual() : 0, event.clientX - box.left, event.clientY - box.top);
});

handle.addEventListener("pointerdown", event => {
  handle.setPointerCapture(event.pointerId);
  handle.focus({ preventScroll: true });
  event.preventDefault();
});
handle.addEventListener("pointermove", event => {
  if (!handle.hasPointerCapture(event.pointerId)) return;
  const box = view.getBoundingClientRect(), left = Math.max(0, x), right = Math.min(view.clientWidth, x + sides.width * scale);
  slide((event.clientX - box.left - left) / (right - left));
});
const inTheHandle = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 };
handle.addEventListener("keydown", event => {
  const step = inTheHandle[event.key];
  if (!step) return;
  event.preventDefault();
  event.stopPropagation();
  slide(border + step);
});
const inTheView = {
  "+": () => zoom(scale * STEP), "=": () => zoom(scale * STEP), "-": () => zoom(scale / STEP), 0: () => zoom(0), 1: () => zoom(actual()),
  ArrowLeft: () => move(60, 0), ArrowRight: () => move(-60, 0), ArrowUp: () => move(0, 60), ArrowDown: () => move(0, -60),
};
view.addEventListener("keydown", event => {
  const act = inTheView[event.key];
  const arrow = event.key.startsWith("Arrow");
  if (!act || event.ctrlKey || event.metaKey || event.altKey || (arrow && !view.classList.contains("zoomed"))) return;
  event.preventDefault();
  act();
});

$("fit").onclick = () => zoom(0);
$("actual").onclick = () => zoom(actual());
$("in").onclick = () => zoom(scale * STEP);
$("out").onclick = () => zoom(scale / STEP);
new ResizeObserver(draw).observe(view);
addEventListener("resize", draw);
