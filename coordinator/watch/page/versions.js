"use strict";
// The newest versions, as a chart and as a table.

const MOST_VERSIONS = 40;

function showVersions(status) {
  if (!changed("versions", status.versions)) return;
  showLoss(status.versions);
  const rows = status.versions.slice(-MOST_VERSIONS).reverse().map((version) => versionRow(version, status.at_ns));
  document.querySelector("#versions tbody").replaceChildren(...rows);
}

function versionRow(version, nowNs) {
  const style = version.verdict === "turned_down" ? "left refused" : "left";
  const figures = [
    age(version.created_at_ns, nowNs),
    number(version.updates),
    number(version.staleness),
    number(version.node_loss, 3),
    number(version.gate_before, 3),
    number(version.gate_after, 3),
  ];
  return make("tr", { "data-version": version.version },
    make("th", { scope: "row" }, String(version.version)),
    ...figures.map((figure) => make("td", {}, figure)),
    make("td", { className: style }, VERDICTS[version.verdict]));
}
