"use strict";
// The beginning: listen to what the reader does, and show each status as it comes.

let newest = null;

function show(status) {
  newest = status;
  showHead(status);
  showAlarms(status);
  showTiles(status);
  showVersions(status);
  showStaleness(status);
  showShares(status);
  showFleet(status);
  showFacts(status);
}

function connection(isLive) {
  $("connection").className = isLive ? "" : "lost";
  const lost = newest ? `connection lost; as of ${clock(newest.at_ns)}` : "no answer yet";
  say($("connection"), isLive ? "live" : lost);
}

buildFleetHead();
$("filter").addEventListener("input", () => showFleet(newest));
$("trace-form").addEventListener("submit", showTrace);
$("token-form").addEventListener("submit", unlock);
$("rollback-form").addEventListener("submit", confirmRollback);
$("confirm-form").addEventListener("submit", confirmed);
$("cancel").addEventListener("click", () => $("confirm").close());
$("lock").addEventListener("click", () => {
  lock(true);
  tell("Locked.");
  $("token").focus();
});
window.addEventListener("resize", () => {
  if (newest) show(newest);
});
lookForOrders();

const stream = new EventSource("/api/events");
stream.addEventListener("status", (event) => {
  connection(true);
  show(JSON.parse(event.data));
});
stream.addEventListener("error", () => connection(false));
