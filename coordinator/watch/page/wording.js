"use strict";
// Figures as people read them.

const VERDICTS = {
  served: "served",
  turned_down: "turned down",
  not_judged: "served, not judged",
  passed_over: "passed over",
  waits: "waits for the gate",
};

// one for each number of digits: they are dear to make
const FORMATS = [0, 1, 2, 3, 4].map(
  (digits) => new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));

/** A number with so many digits after the point; a dash where there is none. */
function number(value, digits = 0) {
  return value === null || value === undefined ? "–" : FORMATS[digits].format(value);
}

function percent(share) {
  return `${number(100 * share, 1)} %`;
}

/** How long ago something was, in the largest unit of which there are two. */
function age(fromNs, nowNs) {
  if (fromNs === null) return "–";
  const s = Math.max(0, (nowNs - fromNs) / 1e9);
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}

function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (size >= 1024 && at < units.length - 1) {
    size /= 1024;
    at += 1;
  }
  return `${number(size, at ? 1 : 0)} ${units[at]}`;
}

/** A moment by the clock of whoever looks. */
function clock(ns) {
  return new Date(ns / 1e6).toLocaleString([], { hour12: false });
}

function sumOf(counts) {
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
}
