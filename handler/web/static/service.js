// Calls of the service. Addresses are relative to the page, so that any prefix or stage before it works.

const $ = id => document.getElementById(id);

/** What the service takes, written into the page when it was served. */
export const limits = JSON.parse(document.querySelector("meta[name=limits]").content);

export class NoAnswer extends Error {}

export const wait = (milliseconds, signal) => new Promise((done, stopped) => {
  const timer = setTimeout(done, milliseconds);
  signal?.addEventListener("abort", () => { clearTimeout(timer); stopped(signal.reason); }, { once: true });
});

/**
 * Call the service; waits for the key where one is needed, and for the time that the service asks for.
 *
 * Args:
 *   method, path: of the call; the path relative to the page.
 *   body: an object that is sent as JSON, or a FormData.
 *   read: makes the value from the answer; JSON unless given.
 *   signal: ends the call.
 *   tries: how often the service may ask to come back later (429, 503) before that is an error.
 */
export async function call(method, path, body, { read, signal, tries = 8 } = {}) {
  for (let turn = 1; ; turn++) {
    const headers = {};
    if (body && !(body instanceof FormData)) headers["Content-Type"] = "application/json";
    const key = sessionStorage.getItem("key");
    if (key) headers["X-API-Key"] = key;
    let answer;
    try {
      answer = await fetch(path, { method, headers, signal, body: headers["Content-Type"] ? JSON.stringify(body) : body });
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      throw new NoAnswer("The service does not answer. Is it running, and is this machine connected?");
    }
    if (answer.ok) {
      if (key) unlocked();
      return read ? read(answer) : answer.json().catch(() => ({}));
    }
    const problem = await answer.json().catch(() => ({}));
    if (needsKey(answer.status, problem)) {
      await askForKey(key, signal);
      continue;
    }
    const pause = Number(answer.headers.get("Retry-After"));
    if ((answer.status === 429 || answer.status === 503) && turn < tries && pause <= 120) {
      await wait(1000 * (pause || 2 ** turn), signal);
      continue;
    }
    throw Object.assign(new Error(reason(answer.status, problem)), { status: answer.status });
  }
}

/** 401 is this service's word for it, 403 with "Forbidden" that of API Gateway. */
function needsKey(status, problem) {
  if (status === 401) return true;
  return status === 403 && !problem.code && problem.message !== "Missing Authentication Token";
}

/** Problem details (RFC 9457) have a detail, API Gateway has a message. */
export function reason(status, problem) {
  return problem.detail || problem.message || {
    413: "the picture is too large for this service",
    429: "too many requests: wait a minute and try again",
    502: "the service could not finish this: try again",
    504: "the service took too long to answer: try again",
  }[status] || `the service answered with the error ${status}`;
}

let asking = null;

/** Show the question for the key; the promise is kept when one was entered. */
function askForKey(tried, signal) {
  if (tried !== sessionStorage.getItem("key")) return Promise.resolve();  // another call got a newer one meanwhile
  if (tried) {
    sessionStorage.removeItem("key");
    $("lock").classList.add("wrong");
    $("lock-words").textContent = "That key does not fit. Was a letter or a space lost or added when it was copied?";
  }
  if (!asking || tried) {
    const before = asking;
    asking = {};
    asking.promise = new Promise(entered => { asking.entered = entered; });
    if (before) asking.promise.then(before.entered);
    $("lock").hidden = false;
    $("key").value = "";
    $("key").setAttribute("aria-invalid", String(Boolean(tried)));
    $("key").focus();
  }
  return Promise.race([asking.promise, new Promise((_, stopped) => {
    signal?.addEventListener("abort", () => stopped(signal.reason), { once: true });
  })]);
}

function unlocked() {
  if (asking) return;
  $("lock").hidden = true;
}

$("lock").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  const { entered } = asking ?? {};
  asking = null;
  entered?.();
});
