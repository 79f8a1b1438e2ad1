"use strict";

// Everything that came from a file is set as text or as an attribute, never parsed as HTML.

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawing(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function colourOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function written(value, digits = 4) {
  return value.toLocaleString("en", { maximumSignificantDigits: digits, useGrouping: false });
}

function percent(share) {
  const value = 100 * share;
  return `${value >= 99.95 ? "100" : value.toFixed(1)} %`;
}
