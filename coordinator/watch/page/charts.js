"use strict";
// Drawings: loss over versions, staleness, shares. Each says in its label what it shows.

const LOSS = { height: 250, left: 46, right: 12, top: 10, bottom: 26 };
const BARS = { row: 22, left: 112, right: 58 };
const NARROWEST = 240;
const LOSS_LINES = [
  { key: "gate_after", name: "calibration loss of the candidate", color: "var(--accent)", mark: "●" },
  { key: "gate_before", name: "of what was served before", color: "var(--soft)", mark: "┄", dash: "4 4" },
  { key: "node_loss", name: "nodes' own training loss", color: "var(--second)", mark: "—" },
];
const STALENESS_EDGES = [[0, 0], [1, 1], [2, 2], [3, 3], [4, 5], [6, 8], [9, 13], [14, 21], [22, 34], [35, Infinity]];
const MOST_SHARES = 12; // beyond them only the largest and the smallest, half of each
const LONGEST_NAME = 15;

// ---- axes ----

/** How wide a drawing can be, in pixels: drawn at its own size, it has letters as large as all others. */
function roomIn(id) {
  return Math.max(NARROWEST, Math.floor($(id).clientWidth));
}

/** From [from, to] to [low, high]. */
function scale(from, to, low, high) {
  const span = to - from || 1;
  return (value) => low + (value - from) / span * (high - low);
}

/** About so many round values in between. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(at);
  return found;
}

// ---- loss over versions ----

function showLoss(versions) {
  const width = roomIn("loss");
  if (!changed("loss", [width, versions])) return;
  const lines = LOSS_LINES.filter((line) => versions.some((v) => v[line.key] !== null));
  if (lines.length) $("loss").replaceChildren(lossChart(versions, lines, width));
  else $("loss").replaceChildren(make("p", { className: "soft" }, "No loss has been measured yet."));
  const legend = lines.map((line) => entry(line.mark, line.color, line.name));
  const isTurnedDown = versions.some((v) => v.gate_after !== null && v.verdict === "turned_down");
  if (isTurnedDown) legend.push(entry("✕", "var(--bad)", "turned down by the gate"));
  $("loss-legend").replaceChildren(...legend);
}

function lossChart(versions, lines, width) {
  const { height, left, right, top, bottom } = LOSS;
  const values = versions.flatMap((v) => lines.map((line) => v[line.key])).filter((value) => value !== null);
  const low = Math.min(...values), high = Math.max(...values), room = (high - low || high || 1) * 0.08;
  const first = versions[0].version, last = versions.at(-1).version;
  const x = scale(first, Math.max(first + 1, last), left, width - right);
  const y = scale(low - room, high + room, height - bottom, top);
  const label = `Loss over ${versions.length} versions. ${lines.map((line) => newestOf(line, versions)).join("; ")}.`;
  const chart = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const at of ticks(low - room, high + room, 4)) chart.append(...lossTick(at, y(at), width));
  for (const at of ticks(first, last, 6).filter(Number.isInteger)) {
    chart.append(draw("text", { x: x(at), y: height - 8, "text-anchor": "middle" }, String(at)));
  }
  for (const line of lines) chart.append(lossLine(line, versions, x, y));
  const judged = versions.filter((v) => v.gate_after !== null);
  for (const v of judged) chart.append(gateMark(x(v.version), y(v.gate_after), v));
  return chart;
}

function newestOf(line, versions) {
  const newest = versions.findLast((v) => v[line.key] !== null);
  return `${line.name} ${number(newest[line.key], 3)} at version ${newest.version}`;
}

function lossTick(value, y, width) {
  return [
    draw("line", { x1: LOSS.left, x2: width - LOSS.right, y1: y, y2: y, stroke: "var(--grid)" }),
    draw("text", { x: LOSS.left - 6, y: y + 4, "text-anchor": "end" }, String(+value.toPrecision(3))),
  ];
}

function lossLine(line, versions, x, y) {
  const measured = versions.filter((v) => v[line.key] !== null);
  if (measured.length === 1) {
    const [only] = measured;
    return draw("circle", { cx: x(only.version), cy: y(only[line.key]), r: 3, fill: line.color });
  }
  const points = measured.map((v) => `${x(v.version).toFixed(1)},${y(v[line.key]).toFixed(1)}`).join(" ");
  const dash = line.dash ? { "stroke-dasharray": line.dash } : {};
  const pen = { fill: "none", stroke: line.color, "stroke-width": 2, "stroke-linejoin": "round", ...dash };
  return draw("polyline", { points, ...pen });
}

function gateMark(x, y, version) {
  const cross = { d: `M${x - 4} ${y - 4}l8 8m0 -8l-8 8`, stroke: "var(--bad)", "stroke-width": 2.5 };
  const dot = { cx: x, cy: y, r: 3, fill: "var(--accent)" };
  const mark = version.verdict === "turned_down" ? draw("path", cross) : draw("circle", dot);
  const text = `version ${version.version}: ${number(version.gate_after, 3)}, ${VERDICTS[version.verdict]}`;
  mark.append(draw("title", {}, text));
  return mark;
}

function entry(mark, color, text) {
  const sign = make("i", { ariaHidden: "true" }, mark);
  sign.style.color = color;
  return make("li", {}, sign, text);
}

// ---- bars ----

function bars(items, label, width) {
  const height = items.length * BARS.row, most = Math.max(...items.map((item) => item.value), 1e-9);
  const length = scale(0, most, 0, width - BARS.left - BARS.right);
  const chart = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  items.forEach((item, at) => chart.append(...bar(item, at * BARS.row, item.value && Math.max(1, length(item.value)))));
  return chart;
}

function bar(item, y, width) {
  const name = item.name.length > LONGEST_NAME ? `${item.name.slice(0, LONGEST_NAME - 1)}…` : item.name;
  const fill = item.isLow ? "var(--bad)" : "var(--bar)";
  const drawn = draw("rect", { x: BARS.left, y: y + 3, width, height: BARS.row - 7, rx: 2, fill });
  drawn.append(draw("title", {}, `${item.name}: ${item.text}`));
  return [
    draw("text", { x: BARS.left - 8, y: y + 15, "text-anchor": "end" }, name),
    drawn,
    draw("text", { x: BARS.left + width + 6, y: y + 15 }, item.text),
  ];
}

function inWords(items) {
  return items.map((item) => `${item.name}: ${item.text}`).join("; ");
}

// ---- staleness ----

function showStaleness(status) {
  const width = roomIn("staleness");
  if (!changed("staleness", [width, status.staleness])) return;
  const counts = Object.entries(status.staleness).map(([value, count]) => [Number(value), count]);
  if (!sumOf(status.staleness)) {
    $("staleness").replaceChildren(make("p", { className: "soft" }, "No version has been made of updates yet."));
    return;
  }
  const items = STALENESS_EDGES.map(([from, to]) => {
    const value = counts.reduce((sum, [s, count]) => sum + (s >= from && s <= to ? count : 0), 0);
    const name = to === Infinity ? `${from} or more` : from === to ? String(from) : `${from}–${to}`;
    return { name, value, text: number(value) };
  });
  while (items.length > 3 && !items.at(-1).value) items.pop();
  $("staleness").replaceChildren(bars(items, `Updates by staleness in versions: ${inWords(items)}.`, width));
}

// ---- shares ----

function showShares(status) {
  const nodes = status.nodes.filter((node) => node.participation), width = roomIn("share");
  const starved = new Set(status.alarms.filter((alarm) => alarm.kind === "node_starved").map((alarm) => alarm.node));
  if (!changed("share", [width, nodes.map((node) => [node.node, node.weight_share, starved.has(node.node)])])) return;
  if (!nodes.length) {
    $("share").replaceChildren();
    say($("share-note"), "No update has been accepted yet.");
    return;
  }
  const items = picked(nodes).map((node) => ({
    name: node.node,
    value: node.weight_share,
    text: percent(node.weight_share),
    isLow: starved.has(node.node),
  }));
  $("share").replaceChildren(bars(items, `Share of the weight: ${inWords(items)}.`, width));
  const half = MOST_SHARES / 2;
  const which = nodes.length > MOST_SHARES ? `The ${half} largest and the ${half} smallest of ${nodes.length}. ` : "";
  say($("share-note"), `${which}Equal shares would be ${percent(1 / nodes.length)}. Over the newest versions.`);
}

/** The nodes whose shares are drawn, the largest first. */
function picked(nodes) {
  const sorted = [...nodes].sort((a, b) => b.weight_share - a.weight_share || (a.node < b.node ? 1 : -1));
  if (sorted.length <= MOST_SHARES) return sorted;
  return [...sorted.slice(0, MOST_SHARES / 2), ...sorted.slice(-MOST_SHARES / 2)];
}
