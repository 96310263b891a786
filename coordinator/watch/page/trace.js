"use strict";
// One update, from node to version.

/** Follow the update of an id that the page shows. */
function follow(id) {
  $("trace-id").value = id;
  $("trace-form").requestSubmit();
  $("trace-id").scrollIntoView({ block: "center" });
}

async function showTrace(event) {
  event.preventDefault();
  const id = $("trace-id").value.trim().toLowerCase();
  if (!id) return;
  if (!/^[0-9a-f]{6,32}$/.test(id)) {
    sayTrace("refused", `${id} is no update id: give 6 to 32 hexadecimal digits of one.`);
    return;
  }
  sayTrace("soft", "Looking through the journal …");
  try {
    const answer = await fetch(`/api/trace/${encodeURIComponent(id)}`);
    const found = await answer.json();
    if (answer.ok) $("trace-result").replaceChildren(...traced(found));
    else sayTrace("refused", found.error ?? `The coordinator answered ${answer.status}.`);
  } catch (fault) {
    sayTrace("refused", "The coordinator does not answer.");
  }
}

function sayTrace(style, text) {
  $("trace-result").replaceChildren(make("p", { className: style }, text));
}

function traced(trace) {
  const steps = [...ofTraining(trace), ...ofArrivals(trace.arrivals), ofDecision(trace), ...ofVersion(trace)];
  const title = make("p", {}, make("code", {}, trace.update_id), ` of ${trace.node}`);
  return [title, make("ol", { className: "steps" }, ...steps.map((text) => make("li", {}, text)))];
}

function ofTraining(trace) {
  if (trace.base_version === null) return [];
  const from = `${trace.node} trained from version ${trace.base_version}`;
  if (trace.examples === null) return [from];
  const took = `in ${number(trace.training_seconds, 1)} s, loss ${number(trace.loss, 3)}`;
  return [`${from}: ${trace.steps} steps on ${trace.examples} examples ${took}`];
}

function ofArrivals(arrivals) {
  if (!arrivals.length) return [];
  const first = arrivals[0], last = arrivals.at(-1), twice = arrivals.filter((arrival) => arrival.duplicate).length;
  const size = bytes(arrivals.reduce((sum, arrival) => sum + arrival.size, 0));
  const within = `within ${number((last.at_ns - first.at_ns) / 1e9, 2)} s`;
  const again = twice ? `, ${twice} sent again` : "";
  return [`${clock(first.at_ns)}: ${arrivals.length} messages arrived, ${size}, ${within}${again}`];
}

function ofDecision(trace) {
  if (trace.status === null) return "parts of it are still missing";
  const isRefused = trace.status === "rejected" || trace.status === "stale";
  return `${clock(trace.decided_at_ns)}: ${isRefused ? `${trace.status}: ${trace.reason}` : "accepted"}`;
}

function ofVersion(trace) {
  const into = trace.went_into;
  if (!into) return trace.status === "accepted" ? ["waits for the next version"] : [];
  const share = `weight ${number(into.weight, 4)} (${percent(into.weight_share)} of that version)`;
  const losses = `: calibration loss ${number(into.gate_after, 3)}, before ${number(into.gate_before, 3)}`;
  const part = `went into version ${into.version} as one of ${into.updates}, staleness ${into.staleness}`;
  return [
    `${clock(into.at_ns)}: ${part}, ${share}`,
    `version ${into.version}: ${VERDICTS[into.verdict]}${into.gate_after === null ? "" : losses}`,
  ];
}
