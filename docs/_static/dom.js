// Elements in one line: `element("option", { value: 1 }, "one")`.
"use strict";

const SVG = new Set(["svg", "path", "line", "text", "circle"]);

function element(tag, attributes = {}, ...children) {
  const made = SVG.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function code(text) {
  return element("div", { class: "highlight" }, element("pre", {}, text));
}

// A field with its name above it, which tells every change.
function field(name, input, help = "") {
  return element("label", { class: "rms-field", title: help }, element("span", {}, name), input);
}
