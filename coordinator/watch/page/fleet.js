"use strict";
// The fleet: a row for each node, filled again with each status, found and sorted as the reader wants.

// What a column is called, what it sorts by, and what a cell says; `fill` where a cell is more than text.
const COLUMNS = [
  { field: "node", name: "node", value: (n) => n.node, text: (n) => n.node, hint: (n) => n.node, isName: true },
  { field: "liveness", name: "is", value: (n) => n.liveness, text: lives, hint: (n) => n.quarantine ?? "",
    style: (n) => `left ${n.liveness}`, isLeft: true },
  { field: "version", name: "holds", value: (n) => n.version ?? -1, text: (n) => number(n.version) },
  { field: "serving", name: "serves", value: (n) => n.serving ?? -1, text: (n) => number(n.serving) },
  { field: "behind", name: "behind", value: (n) => n.behind ?? -1, text: (n) => number(n.behind),
    style: (n) => n.behind > 3 ? "late" : "" },
  { field: "training", name: "trains", value: (n) => n.training_from ?? -1, text: trains,
    hint: (n) => n.limits ? `only with ${n.limits}` : "" },
  { field: "rank", name: "rank", value: (n) => n.rank ?? -1, text: (n) => number(n.rank),
    hint: (n) => n.codecs.length ? `sends ${n.codecs.join(", ")}` : "" },
  { field: "loss", name: "loss", value: (n) => n.loss ?? -1, text: (n) => number(n.loss, 3) },
  { field: "held_out", name: "held out", value: (n) => heldOut(n)?.loss ?? -1, text: measured, hint: measurements },
  { field: "participation", name: "accepted", value: (n) => n.participation, text: (n) => number(n.participation) },
  { field: "weight_share", name: "weight", value: (n) => n.weight_share, text: (n) => percent(n.weight_share) },
  { field: "staleness", name: "staleness", value: (n) => n.staleness ?? -1, text: (n) => number(n.staleness, 1) },
  { field: "outbox", name: "outbox", value: (n) => n.outbox ?? -1, text: (n) => number(n.outbox) },
  { field: "refusals", name: "refused", value: (n) => sumOf(n.refusals), text: (n) => number(sumOf(n.refusals)),
    style: (n) => n.refused_in_a_row ? "refused" : "", hint: causes },
  { field: "last_update", name: "last update", value: (n) => n.last_update?.at_ns ?? 0, prepare: prepareLast,
    fill: fillLast },
  { field: "act", name: "orders", value: (n) => n.quarantine === null ? 0 : 1, prepare: prepareAct, fill: fillAct },
];
const byName = new Intl.Collator("en", { numeric: true });
const order = { column: COLUMNS[0], isUp: true };

// ---- cells ----

function lives(node) {
  return node.quarantine === null ? node.liveness : `${node.liveness}, in quarantine`;
}

function trains(node) {
  if (node.training_from !== null) return `v${node.training_from} ${node.step}/${node.steps}`;
  return node.idle ? `no: ${node.idle.replaceAll("_", " ")}` : "–";
}

/** What the node measured on examples of its own that it holds out: of what it serves, else of the head. */
function heldOut(node) {
  return node.held_out.served ?? node.held_out.head;
}

function measured(node) {
  const told = heldOut(node);
  return told ? `${number(told.loss, 3)} v${told.version}` : "–";
}

function measurements(node) {
  const said = ([use, told]) => `${use}: ${number(told.loss, 3)} on ${told.examples} examples with version ${told.version}`;
  return Object.entries(node.held_out).map(said).join(", ");
}

function causes(node) {
  return Object.entries(node.refusals).map(([cause, count]) => `${cause.replaceAll("_", " ")}: ${count}`).join(", ");
}

function prepareLast(cell) {
  const button = make("button", { type: "button", className: "id" });
  button.addEventListener("click", () => follow(button.value));
  cell.append(button, make("span"));
}

function fillLast(cell, node, nowNs) {
  const [button, text] = cell.children, last = node.last_update, id = last ? last.update_id : "";
  if (button.value !== id) {
    button.value = id;
    button.textContent = id.slice(0, 8);
    button.setAttribute("aria-label", `follow ${id.slice(0, 8)}`);
  }
  button.hidden = !last;
  say(text, last ? `${last.status}, ${age(last.at_ns, nowNs)} ago` : "–");
}

function prepareAct(cell, name) {
  const button = make("button", { type: "button" });
  button.addEventListener("click", () => confirmNode(name));
  cell.className = "act";
  cell.append(button);
}

function fillAct(cell, node) {
  const button = cell.firstChild, text = node.quarantine === null ? "shut out" : "forgive";
  if (button.textContent === `${text} …`) return;
  button.textContent = `${text} …`;
  button.setAttribute("aria-label", `${text} ${node.node}`);
}

function fillText(column, cell, node) {
  say(cell, column.text(node));
  dress(cell, column.style?.(node) ?? "");
  const hint = column.hint?.(node) ?? "";
  if (cell.title !== hint) cell.title = hint;
}

// ---- rows ----

function newRow(name) {
  const row = make("tr", { role: "row" });
  for (const column of COLUMNS) {
    const cell = make(column.isName ? "th" : "td", { "data-field": column.field, "data-label": column.name });
    cell.setAttribute("role", column.isName ? "rowheader" : "cell");
    column.prepare?.(cell, name);
    row.append(cell);
  }
  return row;
}

function fillRow(row, node, nowNs) {
  COLUMNS.forEach((column, at) => {
    const cell = row.children[at];
    if (column.fill) column.fill(cell, node, nowNs);
    else fillText(column, cell, node);
  });
}

/** What is shown of these nodes, in the order that was asked for. */
function wanted(nodes) {
  const part = $("filter").value.trim().toLowerCase(), sign = order.isUp ? 1 : -1;
  const { value, isName } = order.column;
  const compared = (x, y) => isName ? byName.compare(x, y) : x < y ? -1 : x > y ? 1 : 0;
  const found = nodes.filter((node) => node.node.toLowerCase().includes(part));
  return found.sort((a, b) => sign * compared(value(a), value(b)) || byName.compare(a.node, b.node));
}

function showFleet(status) {
  if (!status) return;
  const nodes = wanted(status.nodes);
  const rows = arrange($("fleet-body"), nodes.map((node) => node.node), newRow);
  rows.forEach((row, at) => fillRow(row, nodes[at], status.at_ns));
  say($("fleet-caption"), `${nodes.length} of ${status.nodes.length} nodes. A heading sorts by its column.`);
}

// ---- the heading ----

function buildFleetHead() {
  $("fleet-head").replaceChildren(...COLUMNS.map((column) => {
    const style = column.field === "act" ? "act" : column.isLeft || column.isName ? "left" : "";
    const button = make("button", { type: "button" }, column.name);
    button.addEventListener("click", () => sortBy(column));
    return make("th", { role: "columnheader", className: style, "data-column": column.field }, button);
  }));
  sayOrder();
}

function sortBy(column) {
  order.isUp = order.column === column ? !order.isUp : Boolean(column.isName);
  order.column = column;
  sayOrder();
  showFleet(newest);
}

function sayOrder() {
  COLUMNS.forEach((column, at) => {
    const head = $("fleet-head").children[at];
    if (column === order.column) head.setAttribute("aria-sort", order.isUp ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  });
}
