"use strict";
// Orders: only with the token, each confirmed. The token is kept in this page's memory alone.

let token = null, asked = null;

async function orders(init) {
  try {
    const answer = await fetch("/api/orders", init);
    return { status: answer.status, ok: answer.ok, said: await answer.json() };
  } catch (fault) {
    return { status: 0, ok: false, said: { error: "The coordinator does not answer." } };
  }
}

function tell(text, isFault = false) {
  $("order-result").className = isFault ? "refused" : "";
  $("order-result").textContent = text;
}

async function lookForOrders() {
  const { said } = await orders({});
  $("operate").hidden = !said.takes_orders;
}

// ---- the token ----

async function unlock(event) {
  event.preventDefault();
  const given = $("token").value.trim();
  $("token").value = "";
  if (!/^[\x21-\x7e]+$/.test(given)) return tell("A token is one word of letters, digits and signs.", true);
  const { ok, said } = await orders({ headers: { authorization: `Bearer ${given}` } });
  if (!ok || !said.allowed) return tell(said.error ?? "This coordinator takes no orders here.", true);
  token = given;
  lock(false);
  $("rollback-version").focus();
  tell("Unlocked: nodes can be shut out and forgiven in the fleet's last column.");
}

function lock(isLocked) {
  if (isLocked) token = null;
  $("fleet").classList.toggle("locked", isLocked);
  $("token-form").hidden = !isLocked;
  $("rollback-form").hidden = isLocked;
}

// ---- the confirmation ----

function confirmNode(name) {
  const node = newest.nodes.find((one) => one.node === name);
  if (!node) return;
  if (node.quarantine === null) {
    const text = "Nothing is taken from it any more. What is in published versions stays there.";
    ask({ kind: "quarantine", node: name, reason: "" }, `Shut out ${name}?`, text, "Shut out");
  } else {
    const text = `It was shut out: ${node.quarantine}. Its updates count again, and its refusals are forgotten.`;
    ask({ kind: "forgive", node: name }, `Forgive ${name}?`, text, "Forgive");
  }
}

function confirmRollback(event) {
  event.preventDefault();
  const version = Number($("rollback-version").value), scope = $("rollback-head").checked ? "head" : "release";
  const text = scope === "head"
    ? "Nodes serve it and train from it, as a new version."
    : "Nodes serve what that version was served as, and train on from the newest.";
  ask({ kind: "rollback", version, scope }, `Go back to version ${version}?`, text, "Go back");
}

function ask(order, title, text, word) {
  asked = order;
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("go").textContent = word;
  $("reason").value = "";
  $("reason-row").hidden = order.kind !== "quarantine";
  $("confirm").showModal();
}

async function confirmed(event) {
  event.preventDefault();
  const order = asked;
  asked = null;
  $("confirm").close();
  if (!order) return;
  if (order.kind === "quarantine") order.reason = $("reason").value.trim() || "the operator shut it out";
  tell("The coordinator is told …");
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const { status, ok, said } = await orders({ method: "POST", headers, body: JSON.stringify(order) });
  if (status === 401) lock(true);
  if (!ok) tell(said.error ?? `The coordinator answered ${status}.`, true);
  else if (!said.answer) tell(`Order ${said.order} is given; the coordinator has not answered yet.`);
  else tell(`Order ${said.order} is obeyed: ${inEffect(order, said.answer)}.`);
}

function inEffect(order, answer) {
  if (order.kind !== "rollback") return `${order.kind} ${order.node}`;
  return `nodes serve version ${answer.release} and train from version ${answer.head}`;
}
