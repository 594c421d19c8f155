// A ZIP archive of files that are compressed already: stored as they are (APPNOTE 6.3.10), names in UTF-8.

const TABLE = Uint32Array.from({ length: 256 }, (_, number) => {
  for (let bit = 0; bit < 8; bit++) number = number & 1 ? 0xedb88320 ^ (number >>> 1) : number >>> 1;
  return number;
});

async function crc32(blob) {
  let crc = 0xffffffff;
  const reader = blob.stream().getReader();
  for (let part; !(part = await reader.read()).done;)
    for (const byte of part.value) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Little-endian numbers; each is given as [bytes, value]. */
function record(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(at, value, true); else view.setUint32(at, value, true);
    at += size;
  }
  return view.buffer;
}

/** The first name of its like: "a.jpg", "a (2).jpg", ... */
function unique(name, taken) {
  let found = name;
  for (let number = 2; taken.has(found.toLowerCase()); number++) found = name.replace(/(\.[^./]*)?$/, ` (${number})$1`);
  taken.add(found.toLowerCase());
  return found;
}

/**
 * Args:
 *   files: [{ name, blob }].
 * Returns: the archive as a Blob; the pictures stay where the browser keeps them and are not copied into memory.
 * Throws: RangeError for what needs ZIP64: 4 GB, or 65,535 files.
 */
export async function zip(files, now = new Date()) {
  const time = now.getHours() << 11 | now.getMinutes() << 5 | now.getSeconds() >> 1;
  const date = Math.max(0, now.getFullYear() - 1980) << 9 | now.getMonth() + 1 << 5 | now.getDate();
  const parts = [], directory = [], taken = new Set();
  let offset = 0;
  for (const { name, blob } of files) {
    const bytes = new TextEncoder().encode(unique(name, taken));
    const common = [[2, 20], [2, 0x800], [2, 0], [2, time], [2, date], [4, await crc32(blob)], [4, blob.size], [4, blob.size], [2, bytes.length], [2, 0]];
    directory.push(record([4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), bytes);
    parts.push(record([4, 0x04034b50], ...common), bytes, blob);
    offset += 30 + bytes.length + blob.size;
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  if (offset + size > 0xfffffffe || files.length > 0xfffe) throw new RangeError("too much for one ZIP archive");
  const end = record([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
