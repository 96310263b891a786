"use strict";
// The newest versions, as a chart and as a table.

const MOST_VERSIONS = 40;
const VERSION_FIGURES = {
  age: (v, nowNs) => age(v.created_at_ns, nowNs),
  updates: (v) => number(v.updates),
  staleness: (v) => number(v.staleness),
  node_loss: (v) => number(v.node_loss, 3),
  gate_before: (v) => number(v.gate_before, 3),
  gate_after: (v) => number(v.gate_after, 3),
  verdict: (v) => VERDICTS[v.verdict],
};

function showVersions(status) {
  showLoss(status.versions);
  const versions = status.versions.slice(-MOST_VERSIONS).reverse();
  const rows = arrange(document.querySelector("#versions tbody"), versions.map((v) => v.version), newVersionRow);
  rows.forEach((row, at) => fillVersionRow(row, versions[at], status.at_ns));
}

function newVersionRow(version) {
  const cells = Object.keys(VERSION_FIGURES).map((field) => make("td", { "data-field": field }));
  return make("tr", {}, make("th", { scope: "row", "data-field": "version" }, String(version)), ...cells);
}

function fillVersionRow(row, version, nowNs) {
  Object.values(VERSION_FIGURES).forEach((figure, at) => say(row.cells[at + 1], figure(version, nowNs)));
  dress(row.lastChild, version.verdict === "turned_down" ? "left refused" : "left");
}
