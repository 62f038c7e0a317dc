// The table of runs: search, sort, keys, and rows that follow their runs.

import { follow } from "./live.js";

const form = document.getElementById("runs");
const rows = document.getElementById("rows");

function shown() {
  return [...rows.children].filter((row) => !row.hidden);
}

function search() {
  const words = document.getElementById("search").value.toLowerCase().split(/\s+/);
  for (const row of rows.children) row.hidden = !words.every((word) => row.dataset.words.includes(word));
  document.getElementById("no-match").hidden = shown().length > 0;
  document.getElementById("count").textContent = shown().length;
}

let order = { key: "", down: false };

function compare(one, other) {
  const [a, b] = [one.dataset[order.key], other.dataset[order.key]];
  if (a === "" || b === "") return (a === "") - (b === ""); // what is not known stands last
  const numbers = order.key !== "name" && order.key !== "state";
  const less = numbers ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
  return order.down ? -less : less;
}

function sort() {
  if (!order.key) return;
  rows.replaceChildren(...[...rows.children].sort(compare));
  for (const button of document.querySelectorAll("[data-sort]")) {
    const here = button.dataset.sort === order.key;
    const words = order.down ? "descending" : "ascending";
    if (here) button.closest("th").setAttribute("aria-sort", words);
    else button.closest("th").removeAttribute("aria-sort");
  }
}

function move(event) {
  const links = shown().map((row) => row.querySelector("a"));
  const at = links.findIndex((link) => link.closest("tr").contains(document.activeElement));
  const last = links.length - 1;
  const to = { ArrowDown: Math.min(last, at + 1), ArrowUp: at - 1, Home: 0, End: last }[event.key];
  if (to === undefined || last < 0) return;
  event.preventDefault();
  if (to < 0) document.getElementById("search").focus();
  else links[to].focus();
}

function keys(event) {
  const field = document.getElementById("search");
  if (event.key === "/" && event.target.tagName !== "INPUT") {
    event.preventDefault();
    field.focus();
  } else if (event.key === "Escape") {
    field.value = "";
    search();
  } else if (event.target === field ? event.key === "ArrowDown" : form.contains(event.target) || event.key === "ArrowDown") {
    if (event.target.tagName !== "SELECT") move(event);
  }
}

function put(name, html) {
  const made = document.createElement("template");
  made.innerHTML = html;
  const next = made.content.querySelector("tr");
  const here = rows.querySelector(`[data-run="${CSS.escape(name)}"]`);
  if (!here) {
    rows.prepend(next);
    return;
  }
  const focused = here.contains(document.activeElement) ? document.activeElement.tagName : null;
  next.querySelector("input").checked = here.querySelector("input").checked;
  here.replaceWith(next);
  if (focused) next.querySelector(focused).focus();
}

// Of some runs by their names, a few at a time; of all at once where none are named.
function queries(names) {
  if (!names) return [""];
  const asked = names.map((name) => ["run", name]);
  return Array.from({ length: Math.ceil(asked.length / 40) }, (_, at) => new URLSearchParams(asked.slice(40 * at, 40 * at + 40)));
}

async function update(changed, gone) {
  for (const query of queries(changed)) {
    const found = await (await fetch(`/rows?${query}`)).json();
    Object.entries(found).forEach(([name, html]) => put(name, html));
    if (!changed) gone = [...rows.children].map((row) => row.dataset.run).filter((name) => !(name in found));
  }
  for (const name of gone) rows.querySelector(`[data-run="${CSS.escape(name)}"]`)?.remove();
  sort();
  search();
}

function choose() {
  const count = rows.querySelectorAll("input:checked").length;
  document.getElementById("compare").disabled = count < 2;
}

if (rows) {
  document.getElementById("search").addEventListener("input", search);
  document.querySelectorAll("[data-sort]").forEach((button) =>
    button.addEventListener("click", () => {
      order = { key: button.dataset.sort, down: order.key === button.dataset.sort ? !order.down : button.dataset.sort === "when" };
      sort();
    }),
  );
  document.addEventListener("keydown", keys);
  form.addEventListener("change", choose);
  choose();
  search();
}
follow(form.dataset.live, rows ? update : async () => location.reload());
