// Numbers as people read them.

export const pixels = (width, height) => `${width.toLocaleString()} × ${height.toLocaleString()} pixels`;

export const bytes = count =>
  count < 1e6 ? `${Math.ceil(count / 1e3)}\u00a0kB` : `${(count / 1e6).toFixed(count < 1e8 ? 1 : 0)}\u00a0MB`;

export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 90) return `${whole}\u00a0s`;
  return whole < 5400 ? `${Math.round(whole / 60)}\u00a0min` : `${(whole / 3600).toFixed(1)}\u00a0h`;
}

export const count = (number, one, many) => `${number.toLocaleString()}\u00a0${number === 1 ? one : many}`;

export const sentence = text => text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
