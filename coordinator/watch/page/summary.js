"use strict";
// Head, alarms, tiles and counts: the federation at a glance.

const MOST_ALARMS = 20;

function showHead(status) {
  const alarms = status.alarms.length ? `(${status.alarms.length}) ` : "";
  const finished = status.finished ? " · finished" : "";
  say($("title"), status.federation);
  say($("terms"), `${status.strategy} · ${status.base_model} · epoch ${status.epoch}${finished}`);
  say(document.querySelector("title"), `${alarms}${status.federation} · version ${status.head}`);
}

function showAlarms(status) {
  const alarms = status.alarms;
  if (!changed("alarms", alarms)) return;
  $("alarms").hidden = alarms.length === 0;
  const items = alarms.slice(0, MOST_ALARMS).map((alarm) => make("li", { "data-kind": alarm.kind }, alarm.text));
  if (alarms.length > MOST_ALARMS) items.push(make("li", {}, `and ${alarms.length - MOST_ALARMS} more`));
  $("alarm-list").replaceChildren(...items);
}

// ---- tiles ----

function showTiles(status) {
  const online = status.nodes.filter((node) => node.liveness === "online").length;
  const waiting = status.waiting.reduce((sum, group) => sum + group.updates, 0);
  const making = status.in_the_making ? `${status.in_the_making} in the making` : "";
  tile("head", "newest version", number(status.head), `${age(status.head_at_ns, status.at_ns)} old`);
  tile("release", "version served", number(status.release.version), status.release.variant);
  tile("loss", "its calibration loss", number(status.release.loss, 3));
  tile("online", "nodes online", number(online), `of ${status.nodes.length}`);
  tile("waiting", "updates waiting", number(waiting), making);
  tile("refused", "updates refused", number(sumOf(status.refusals)));
  const fairness = status.fairness.served ?? status.fairness.head;
  if (fairness) tile("fairness", "worst held-out loss", number(fairness.worst, 3), fairness.worst_node);
  tile("broker", "broker", !status.process ? "–" : status.process.connected ? "connected" : "away");
}

function tile(field, name, value, more = "") {
  const holder = document.querySelector(`#tiles [data-field="${field}"]`) ?? newTile(field, name);
  say(holder.children[0], value);
  say(holder.children[1], more ? ` ${more}` : "");
}

function newTile(field, name) {
  const holder = make("dd", { "data-field": field }, make("span"), make("small"));
  $("tiles").append(make("div", {}, make("dt", {}, name), holder));
  return holder;
}

// ---- counts ----

function showFacts(status) {
  const tables = [
    ["Updates refused", counted(status.refusals)],
    ["Messages without an answer", counted(status.dropped)],
    ["Gate", counted(status.gate)],
    ["Processor time of the base model", spent(status.model_seconds)],
    ["Waiting, by staleness", status.waiting.map(waitingGroup)],
    ["This process", status.process ? processFacts(status.process, status.at_ns) : []],
  ].filter(([, entries]) => entries.length);
  const kept = arrange($("facts"), tables.map(([title]) => title), newCountTable);
  kept.forEach((table, at) => fillCountTable(table, tables[at][1]));
}

function counted(counts) {
  const some = Object.entries(counts).filter(([, count]) => count);
  return some.map(([name, count]) => [name.replaceAll("_", " "), number(count)]);
}

function spent(seconds) {
  const some = Object.entries(seconds).filter(([, s]) => s);
  return some.map(([stage, s]) => [stage, `${number(s, 1)} s`]);
}

function waitingGroup(group) {
  return [`${group.staleness} (from version ${group.base_version})`, number(group.updates)];
}

function processFacts(process, nowNs) {
  return [
    ["running for", age(process.started_at_ns, nowNs)],
    ["in", `${bytes(process.bytes_in)}, ${number(process.messages_in)} messages`],
    ["out", `${bytes(process.bytes_out)}, ${number(process.messages_out)} messages`],
    ["publications waiting", number(process.publications_waiting)],
    ["questions to the base model", number(process.questions_waiting)],
    ["journal", bytes(process.journal_bytes)],
  ];
}

function newCountTable(title) {
  return make("table", {}, make("caption", {}, title), make("tbody"));
}

function fillCountTable(table, entries) {
  const rows = arrange(table.tBodies[0], entries.map(([name]) => name), newCountRow);
  rows.forEach((row, at) => say(row.lastChild, entries[at][1]));
}

function newCountRow(name) {
  return make("tr", {}, make("th", { scope: "row" }, name), make("td"));
}
