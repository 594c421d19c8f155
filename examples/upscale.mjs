#!/usr/bin/env node
// Make a picture larger with the service: node examples/upscale.mjs photo.jpg [scale] gives photo-x2.jpg beside it.
//
//     UPSCALE_URL   of the service; http://127.0.0.1:8000/ unless set
//     UPSCALE_KEY   sent as X-API-Key; none unless set
//     UPSCALE_WAIT  seconds to wait for a job at most; 3600 unless set
//
// Node 18 or newer, and nothing else. Ends with 0 when the result is there, 1 with a message when the service refused or
// the job failed, 2 on wrong use.
import { existsSync } from "node:fs";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, extname, join } from "node:path";

const base = (process.env.UPSCALE_URL || "http://127.0.0.1:8000").replace(/\/*$/, "/");
const key = process.env.UPSCALE_KEY ? { "X-API-Key": process.env.UPSCALE_KEY } : {};
const end = Date.now() + 1000 * Number(process.env.UPSCALE_WAIT || 3600);
const DIRECT = 4_000_000; // bytes of a request that API Gateway takes, with room for what is around the picture

class Refused extends Error {}

async function pause(seconds) {
  if (Date.now() + 1000 * seconds > end) throw new Refused("not done in time");
  await new Promise(resolve => setTimeout(resolve, 1000 * seconds));
}

// Send a request; asked to wait (429, 503), wait and send it again. Redirects are left to the caller: the key must not go
// on to S3.
async function call(method, path, body, headers = {}) {
  for (;;) {
    const answer = await fetch(base + path, { method, body, headers: { ...key, ...headers }, redirect: "manual" });
    if (answer.status < 400) return answer;
    const text = await answer.text();
    if (answer.status !== 429 && answer.status !== 503) throw new Refused(`refused with ${answer.status}: ${reason(text)}`);
    await pause(Number(answer.headers.get("Retry-After")) || 5);
  }
}

// What a refusal says: a problem's detail, or a gateway's message.
function reason(text) {
  try {
    const found = JSON.parse(text);
    return found.detail || found.message || text;
  } catch {
    return text;
  }
}

async function download(answer) {
  const found = await fetch(answer.headers.get("Location"));
  if (!found.ok) throw new Refused(`the result cannot be had: ${found.status}`);
  return found;
}

function form(fields, photo, name) {
  const data = new FormData();
  for (const [field, value] of Object.entries(fields)) data.append(field, value);
  data.append("file", photo, name); // last: S3 ignores what follows it
  return data;
}

// The picture in the answer, or the id of a job that makes it.
async function send(photo, name, scale) {
  if (photo.size <= DIRECT) {
    const answer = await call("POST", `upscale?scale=${encodeURIComponent(scale)}`, form({}, photo, name));
    if (answer.status === 200) return answer;
    if (answer.status === 303) return download(answer);
    return (await answer.json()).id; // 202: it takes too long to wait for
  }
  const wanted = { filename: name, content_type: "application/octet-stream", bytes: photo.size, options: { scale } };
  const answer = await call("POST", "jobs", JSON.stringify(wanted), { "Content-Type": "application/json" });
  const job = await answer.json();
  const sent = await fetch(job.upload.url, { method: "POST", body: form(job.upload.fields, photo, name) });
  if (!sent.ok) throw new Refused(`the file was not taken: ${sent.status} ${await sent.text()}`);
  return job.id;
}

async function result(id) {
  for (;;) {
    const job = await (await call("GET", `jobs/${id}`)).json();
    if (job.state === "succeeded") return download(await call("GET", `jobs/${id}/result`));
    if (job.state === "failed" || job.state === "cancelled")
      throw new Refused(`the job has ${job.state}: ${job.error?.message ?? ""}`);
    await pause(2);
  }
}

const [path, scale = "2"] = process.argv.slice(2);
if (!path || !existsSync(path)) {
  console.error("usage: node upscale.mjs photo.jpg [scale]");
  process.exit(2);
}
const ending = extname(path);
const target = join(dirname(path), `${basename(path, ending)}-x${scale}${ending}`);
if (existsSync(target)) {
  console.error(`${target} is there already: move it away first`);
  process.exit(2);
}
const part = `${target}.part`;
try {
  const found = await send(new Blob([await readFile(path)]), basename(path), Number(scale));
  const answer = typeof found === "string" ? await result(found) : found;
  await writeFile(part, Buffer.from(await answer.arrayBuffer()));
  await rename(part, target);
  console.log(target);
} catch (error) {
  await rm(part, { force: true });
  console.error(error instanceof Refused ? error.message : `no answer: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
}
