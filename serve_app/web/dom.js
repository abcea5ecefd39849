// Small helpers to make and find elements. Text is only ever set as text, so nothing an answer holds becomes markup.

export const $ = (id) => document.getElementById(id);

/** An element with attributes (`text` is its text, functions listen to events of that name) and children; null is none. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function drawn(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Sets the text of an element only if it changes: a live region says again what is set again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Makes the children of a node equal to others, changing only what differs: what is read or selected stays where it is.
 * For elements without listeners.
 */
export function become(node, children) {
  const old = [...node.childNodes];
  for (const [i, child] of children.entries()) {
    if (!old[i]) node.append(child);
    else if (old[i].nodeName !== child.nodeName) old[i].replaceWith(child);
    else if (child.nodeType === Node.TEXT_NODE) say(old[i], child.textContent);
    else {
      takeAttributes(old[i], child);
      become(old[i], [...child.childNodes]);
    }
  }
  for (const extra of old.slice(children.length)) extra.remove();
}

function takeAttributes(node, other) {
  for (const name of node.getAttributeNames()) if (!other.hasAttribute(name)) node.removeAttribute(name);
  for (const name of other.getAttributeNames()) {
    const value = other.getAttribute(name);
    if (node.getAttribute(name) === value) continue;
    if (name === "style") node.style.cssText = value; // as an attribute the content security policy refuses it
    else node.setAttribute(name, value);
  }
}
