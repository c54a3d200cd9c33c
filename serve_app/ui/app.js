"use strict";

// Everything shown comes from the catalogue or the user, so it only ever enters the page as text (textContent).

const K = 20;
const byId = (id) => document.getElementById(id);
const picks = new Map(); // item id -> title, in the order picked
let shownFields = [];
const newest = {}; // list id -> number of the newest request, so that a slow answer never replaces a newer one

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail || answer.title);
  return answer;
}

function hueOf(name) {
  let hash = 7;
  for (const letter of name) hash = (hash * 31 + letter.codePointAt(0)) % 360;
  return hash;
}

function plain(value) {
  if (Array.isArray(value)) return value.slice(0, 12).map(plain).join(", ") + (value.length > 12 ? ", …" : "");
  return value === null || value === undefined ? "" : String(value);
}

function summary(item) {
  return Object.values(item.fields || {})
    .map(plain)
    .filter((text) => text !== "" && text !== item.title)
    .join(" · ");
}

function entry(item) {
  const row = make("li");
  const open = make("button", "open");
  open.type = "button";
  open.append(make("span", "title", item.title || item.item_id));
  const more = summary(item);
  if (more) open.append(make("span", "more", more));
  const tags = make("span", "tags");
  for (const channel of Object.keys(item.channels)) {
    const tag = make("span", "tag", channel);
    tag.style.setProperty("--hue", hueOf(channel));
    tags.append(tag);
  }
  open.append(tags);
  open.addEventListener("click", () => showDetail(item.item_id, item.title));
  row.append(open, pickButton(item));
  return row;
}

function pickButton(item) {
  const button = make("button", "pick");
  button.type = "button";
  button.dataset.item = item.item_id;
  button.addEventListener("click", () => toggle(item.item_id, item.title || item.item_id));
  paint(button, item.title || item.item_id);
  return button;
}

function paint(button, title) {
  const picked = picks.has(button.dataset.item);
  if (title !== undefined) button.dataset.title = title;
  button.textContent = picked ? "Picked" : "Pick";
  button.setAttribute("aria-pressed", String(picked));
  button.setAttribute("aria-label", (picked ? "Remove from picks: " : "Add to picks: ") + button.dataset.title);
}

async function fill(list, path, body, describe) {
  const number = (newest[list] = (newest[list] || 0) + 1);
  const note = byId(list + "-note");
  note.className = "note";
  note.textContent = "asking …";
  try {
    const start = performance.now();
    const answer = await ask(path, { k: K, fields: shownFields, ...body });
    if (newest[list] !== number) return;
    const tookMs = performance.now() - start;
    byId(list).replaceChildren(...answer.items.map(entry));
    note.textContent = describe(answer) + " · " + tookMs.toFixed(1) + " ms";
    if (answer.degraded.length) {
      note.className = "note warn";
      note.textContent += " · without " + answer.degraded.join(", ");
    }
  } catch (error) {
    if (newest[list] !== number) return;
    byId(list).replaceChildren();
    note.className = "note warn";
    note.textContent = error.message;
  }
}

function toggle(id, title) {
  if (!picks.delete(id)) picks.set(id, title);
  byId("user").value = "";
  drawPicks();
  recommend();
}

function drawPicks() {
  byId("picks").replaceChildren(...[...picks].map(([id, title]) => {
    const chip = make("button", "", title + " ×");
    chip.type = "button";
    chip.title = title;
    chip.setAttribute("aria-label", "Remove from picks: " + title);
    chip.addEventListener("click", () => toggle(id, title));
    const entry = make("li");
    entry.append(chip);
    return entry;
  }));
  byId("clear").hidden = picks.size === 0;
  for (const button of document.querySelectorAll(".pick")) paint(button);
}

function recommend() {
  const user = byId("user").value.trim();
  const body = user ? { user_id: user } : { history: [...picks.keys()] };
  fill("recommended", "v1/recommend", body, (answer) => {
    if (answer.cold) return user ? "a user without history: popular items" : "pick something; until then, popular items";
    return user ? "for user " + user : "from " + picks.size + (picks.size === 1 ? " pick" : " picks");
  });
}

async function showDetail(id, title) {
  const dialog = byId("detail");
  byId("detail-title").textContent = title || id;
  byId("detail-id").textContent = id;
  byId("detail-fields").replaceChildren();
  byId("similar").replaceChildren();
  const pick = byId("detail-pick");
  const label = () => { pick.textContent = picks.has(id) ? "Remove from picks" : "Add to picks"; };
  pick.onclick = () => { toggle(id, title || id); label(); };
  label();
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  fill("similar", "v1/similar", { item_id: id, k: 8 }, (answer) => answer.items.length + " items");
  try {
    const item = await ask("v1/items/" + encodeURIComponent(id));
    if (byId("detail-id").textContent !== id) return;
    const rows = Object.entries(item.fields).filter(([, value]) => !["", item.title, id].includes(plain(value)));
    byId("detail-fields").replaceChildren(
      ...rows.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", plain(value))]),
    );
  } catch (error) {
    byId("detail-fields").replaceChildren(make("dt", "", "error"), make("dd", "", error.message));
  }
}

async function start() {
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("text").value.trim();
    if (text) fill("found", "v1/search", { text }, (answer) => answer.items.length + " items");
  });
  byId("by-user").addEventListener("submit", (event) => { event.preventDefault(); recommend(); });
  byId("clear").addEventListener("click", () => { picks.clear(); drawPicks(); recommend(); });
  try {
    const status = await ask("v1/status");
    shownFields = status.fields.filter((name) => name !== "item_id").slice(0, 4);
    byId("release").textContent =
      "release " + status.release + " · " + status.counts.items.toLocaleString() + " items · " + status.topology;
  } catch (error) {
    byId("release").textContent = error.message;
  }
  byId("found-note").textContent = "Results can be picked; click one to see what is like it.";
  recommend();
}

start();
