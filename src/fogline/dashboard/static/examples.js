// The examples of a run: a region of the map, a list or the answer to a query is looked at and decided upon.

import { draw_all, look, ready } from "./figures.js";
import { follow } from "./live.js";
import { replace } from "./parts.js";

const page = document.getElementById("examples");
const waiting = document.querySelector("[data-live][data-none]");

let chosen = { list: "" }; // what is looked at, as the server is asked for it
let start = 0;
let total = 0;
let last = []; // the examples on this page of it

const by_id = (name) => document.getElementById(name);

async function ask(path, body) {
  const response = await fetch(`${page.dataset.place}/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  return [response.ok, await response.json()];
}

function say(words) {
  by_id("count").textContent = words;
}

// -- the gallery -----------------------------------------------------------------------------------------------------

function selection() {
  const only = by_id("only")?.value;
  return only ? { ...chosen, target: Number(only) } : chosen;
}

async function show(from = 0, focus = null) {
  const asked = selection();
  const [ok, found] = await ask("list", { ...asked, start: from });
  if (!ok) {
    say(found.error);
    return;
  }
  [start, total, last] = [found.start, found.count, found.ids];
  by_id("shown").innerHTML = found.html; // written by the server, which escapes every text
  by_id("sql").dataset.selection = JSON.stringify(asked);
  const what = { region: "in the region", ids: "of the answer" }[Object.keys(chosen)[0]] ?? "";
  say(total ? `${start + 1} to ${start + last.length} of ${total.toLocaleString("en")} ${what}` : `no example ${what}`);
  by_id("before").disabled = start === 0;
  by_id("after").disabled = start + found.page >= total;
  const cards = all_cards();
  if (cards.length) cards[0].tabIndex = 0;
  if (focus !== null && cards.length) go(cards[Math.min(focus, cards.length - 1)]);
}

const all_cards = () => [...by_id("shown").querySelectorAll("[data-example]")];

function go(card) {
  all_cards().forEach((other) => (other.tabIndex = -1));
  card.tabIndex = 0;
  card.focus();
}

function choose(what) {
  chosen = what;
  by_id("list").value = what.list ?? "";
  return show();
}

// -- deciding --------------------------------------------------------------------------------------------------------

async function changed(answer, focus) {
  const [ok, found] = answer;
  if (!ok) {
    say(found.error);
    return;
  }
  Object.values(found.parts).forEach(replace);
  await show(start, focus);
  if (by_id("colour")?.value === "edit") await draw_all();
}

const place_of = (card) => (card ? all_cards().indexOf(card) : null);

async function decide(action, card, label) {
  const ids = [Number(card.dataset.example)];
  const button = card.querySelector(`[data-edit="${action}"]`);
  const focus = place_of(card);
  if (button?.getAttribute("aria-pressed") === "true" && label === undefined) {
    await changed(await ask("undo", { ids }), focus);
    return;
  }
  const labels = action === "relabel" ? Number(label ?? button?.dataset.label) : undefined;
  if (action === "relabel" && !button && label === undefined) {
    say("no other label is likely: open the example to give it one");
    return;
  }
  await changed(await ask("edit", { ids, action, labels }), focus);
}

async function decide_all(action) {
  const cards = all_cards();
  if (action !== "relabel") {
    await changed(await ask("edit", { ids: last, action }), null);
    return;
  }
  const pairs = cards.map((card) => [Number(card.dataset.example), card.querySelector('[data-edit="relabel"]')?.dataset.label]);
  const known = pairs.filter(([, label]) => label !== undefined);
  if (!known.length) {
    say("no other label is likely for any of these");
    return;
  }
  await changed(await ask("edit", { ids: known.map(([id]) => id), action, labels: known.map(([, label]) => Number(label)) }), null);
}

function keys(event) {
  const card = event.target.closest("[data-example]");
  if (!card || event.ctrlKey || event.metaKey || event.altKey) return;
  const cards = all_cards();
  const at = cards.indexOf(card);
  const across = card.tagName === "TR" ? 1 : Math.max(1, cards.findIndex((other) => other.offsetTop > cards[0].offsetTop));
  const to = {
    ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + across, ArrowUp: at - across, Home: 0, End: cards.length - 1,
  }[event.key];
  const action = { r: "relabel", d: "drop", k: "keep" }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    if (cards[to]) go(cards[to]);
  } else if (action) {
    event.preventDefault();
    decide(action, card);
  } else if (event.key === "u") {
    event.preventDefault();
    undo(at);
  } else if (event.key === "Enter" && event.target === card) {
    event.preventDefault();
    open(Number(card.dataset.example));
  }
}

async function undo(focus = null) {
  await changed(await ask("undo", {}), focus);
}

// -- one example -----------------------------------------------------------------------------------------------------

const dialog = by_id("more");
let opened = null;

async function open(example) {
  const response = await fetch(`${page.dataset.place}/${example}/more?look=${look()}`);
  if (!response.ok) return;
  const found = await response.json();
  opened = example;
  // Both are written by the server, which escapes every text.
  by_id("head").innerHTML = found.head;
  by_id("numbers").innerHTML = found.rows;
  const card = by_id("shown").querySelector(`[data-example="${example}"]`);
  const likely = card?.querySelector('[data-edit="relabel"]')?.dataset.label;
  if (likely !== undefined) by_id("new-label").value = likely;
  if (!dialog.open) dialog.showModal();
  await ready;
  const curve = by_id("curve");
  await window.Plotly.react(curve, found.figure.data, { ...found.figure.layout, dragmode: false }, { responsive: true, displayModeBar: false });
  curve.classList.add("drawn");
}

async function decide_opened(action) {
  const labels = action === "relabel" ? Number(by_id("new-label").value) : undefined;
  const answer = await ask("edit", { ids: [opened], action, labels });
  if (answer[0]) dialog.close();
  await changed(answer, place_of(by_id("shown").querySelector(`[data-example="${opened}"]`)));
}

// -- the map ---------------------------------------------------------------------------------------------------------

const map = page?.querySelector("#map .plot");

function corners(event) {
  if (event?.lassoPoints) return event.lassoPoints.x.map((x, at) => [x, event.lassoPoints.y[at]]);
  if (!event?.range) return null;
  const [[x0, x1], [y0, y1]] = [event.range.x, event.range.y];
  return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
}

function hear() {
  if (map.dataset.heard) return;
  map.dataset.heard = "yes";
  map.on("plotly_selected", (event) => {
    const region = corners(event);
    if (region) choose({ region });
  });
  map.on("plotly_click", (event) => open(event.points[0].customdata));
}

function by_numbers(event) {
  event.preventDefault();
  const ends = [0, 1].map((at) => {
    const field = (name) => event.target.querySelector(`[data-${name}="${at}"]`).value;
    return [field("from") === "" ? -1e30 : Number(field("from")), field("to") === "" ? 1e30 : Number(field("to"))];
  });
  const [[x0, x1], [y0, y1]] = ends;
  choose({ region: [[x0, y0], [x1, y0], [x1, y1], [x0, y1]] });
}

function colour() {
  map.dataset.figure = `${page.dataset.place}/map?${new URLSearchParams({ colour: by_id("colour").value })}`;
  draw_all();
}

// -- the page --------------------------------------------------------------------------------------------------------

async function update() {
  const response = await fetch(page.dataset.parts);
  if (!response.ok) return;
  const news = await response.json();
  Object.values(news.parts).forEach(replace);
  if (String(news.epochs) === page.dataset.epochs) return;
  page.dataset.epochs = news.epochs;
  await draw_all();
  if (!by_id("shown").contains(document.activeElement)) await show(start);
}

function answered(event) {
  const at = event.detail.columns.indexOf("example");
  if (at < 0) return;
  const ids = [...new Set(event.detail.rows.map((row) => row[at]))].filter(Number.isInteger);
  choose({ ids });
}

function listen() {
  by_id("list").addEventListener("change", () => choose({ list: by_id("list").value }));
  by_id("only")?.addEventListener("change", () => show());
  by_id("before").addEventListener("click", () => show(Math.max(0, start - 24)));
  by_id("after").addEventListener("click", () => show(start + 24));
  by_id("undo").addEventListener("click", () => undo());
  by_id("shown").addEventListener("keydown", keys);
  by_id("shown").addEventListener("click", (event) => {
    const card = event.target.closest("[data-example]");
    const button = event.target.closest("button");
    if (button?.dataset.edit) decide(button.dataset.edit, card);
    else if (button?.dataset.open || event.target.tagName === "IMG") open(Number(card.dataset.example));
  });
  document.querySelector(".tools.all").addEventListener("click", (event) => {
    if (event.target.dataset.all) decide_all(event.target.dataset.all);
  });
  by_id("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target.dataset.edit) decide_opened(event.target.dataset.edit);
  });
  by_id("sql").addEventListener("answered", answered);
}

function listen_to_map() {
  map.addEventListener("drawn", hear);
  if (map.classList.contains("drawn")) hear();
  by_id("colour").addEventListener("change", colour);
  by_id("region").addEventListener("submit", by_numbers);
  for (const mode of document.querySelectorAll('[name="drag"]')) {
    mode.addEventListener("change", () => {
      map.dataset.drag = mode.value;
      window.Plotly?.relayout(map, { dragmode: mode.value });
    });
  }
}

// Of many examples the table is made first; the page comes again when it is there.
async function wait(place) {
  const response = await fetch(place.dataset.wait);
  if (response.ok) location.reload();
  else place.textContent = (await response.json()).error;
}

const slow = document.querySelector("[data-wait]");

if (slow) {
  wait(slow);
} else if (page) {
  listen();
  if (map) listen_to_map();
  choose({ list: by_id("list").options[0].value });
  follow(page.dataset.live, update);
} else if (waiting) {
  follow(waiting.dataset.live, async () => location.reload());
}
