"use strict";
// Elements and their text. Whatever comes from the network becomes text or an attribute, never HTML.

const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

/** An element; what is no property of it becomes an attribute. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** An element of a drawing. */
function draw(tag, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}

/** Let an element say a text; one that says it already is left alone. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Give an element a class, or several; one that has them already is left alone. */
function dress(element, style) {
  if (element.className !== style) element.className = style;
}

/** Let an element have a child for each key, in this order: missing ones are made, and as few as can be are moved. */
function arrange(parent, keys, newChild) {
  const had = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const children = keys.map((key) => had.get(String(key)) ?? keyed(newChild(key), key));
  const kept = new Set(children), focused = document.activeElement;
  for (const child of had.values()) if (!kept.has(child)) child.remove();
  let next = parent.firstChild;
  for (const child of children) {
    if (next !== child && next?.nextSibling === child) next.remove(); // it belongs further down, and comes back there
    else if (next !== child) parent.insertBefore(child, next);
    next = child.nextSibling;
  }
  if (document.activeElement !== focused) focused.focus({ preventScroll: true }); // what is moved loses it
  return children;
}

function keyed(element, key) {
  element.dataset.key = key;
  return element;
}

const shown = new Map();

/** Whether a part of the page shows something else now, by all that it is made of; asked once for each status. */
function changed(part, value) {
  const key = JSON.stringify(value);
  if (shown.get(part) === key) return false;
  shown.set(part, key);
  return true;
}
