// Pictures that somebody chose, dropped or pasted, folders included, as a flat list of files.

const PICTURE = /\.(jpe?g|jpe|jfif|png|apng|webp|tiff?|bmp|dib|gif|hei[cf]|hif|avif)$/i;

/** Whether a file may be a picture; what it is for sure, the service finds out. */
export const isPicture = file => file.type.startsWith("image/") ? !file.type.includes("svg") : PICTURE.test(file.name);

/** The files of a drop. Must be called before the event is over: its items are gone afterwards. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(entry => walk(entry, "")))).flat();
}

async function walk(entry, folder) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed)).catch(() => null);
    if (file && folder) folders.set(file, folder);
    return file ? [file] : [];
  }
  const reader = entry.createReader(), found = [];
  for (let some; (some = await new Promise((done, failed) => reader.readEntries(done, failed))).length;) found.push(...some);
  return (await Promise.all(found.map(inner => walk(inner, `${folder}${entry.name}/`)))).flat();
}

const folders = new WeakMap();

/** The folder that a file came in, with a slash at its end; empty for single files. */
export const folderOf = file => folders.get(file) ?? (file.webkitRelativePath || "").replace(/[^/]*$/, "");
