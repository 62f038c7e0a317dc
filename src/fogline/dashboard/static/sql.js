// The answer to a query as a table; all of it is put in as text.

const form = document.getElementById("sql");
const query = document.getElementById("query");
const answer = document.getElementById("answer");

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function written(value) {
  if (value === null) return "";
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(6))) : String(value);
}

function table(found) {
  const box = element("div", undefined, "scroll");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "Answer");
  const made = element("table");
  const head = element("tr");
  const kinds = found.columns.map((_, at) => (found.rows.some((row) => typeof row[at] === "number") ? "number" : ""));
  found.columns.forEach((name, at) => head.append(element("th", name, kinds[at])));
  made.append(element("thead"), element("tbody"));
  made.tHead.append(head);
  for (const row of found.rows) {
    const line = element("tr");
    row.forEach((value, at) => line.append(element("td", written(value), kinds[at])));
    made.tBodies[0].append(line);
  }
  box.append(made);
  return box;
}

async function ask() {
  answer.replaceChildren(element("p", "Asking …", "faint"));
  const response = await fetch(form.getAttribute("action"), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    // What is chosen on the page, where something can be: the table of that name.
    body: JSON.stringify({ sql: query.value, selection: form.dataset.selection ? JSON.parse(form.dataset.selection) : {} }),
  });
  const found = await response.json();
  if (!response.ok) {
    answer.replaceChildren(element("pre", found.error, "error"));
    return;
  }
  const count = found.more ? `The first ${found.rows.length} rows.` : `${found.rows.length} rows.`;
  answer.replaceChildren(element("p", count, "faint"), table(found));
  form.dispatchEvent(new CustomEvent("answered", { detail: found }));
}

// Queries that were saved in this browser.
const saved = document.getElementById("saved");

function kept() {
  const found = JSON.parse(localStorage.getItem(form.dataset.saved) ?? "[]");
  return Array.isArray(found) ? found.filter((text) => typeof text === "string") : [];
}

function keep(queries) {
  localStorage.setItem(form.dataset.saved, JSON.stringify(queries));
  show_kept();
}

function show_kept() {
  saved.replaceChildren();
  for (const text of kept()) {
    const words = text.length > 40 ? `${text.slice(0, 39)}…` : text;
    const use = element("button", words, "quiet");
    const remove = element("button", "×", "quiet");
    Object.assign(use, { type: "button", title: text });
    use.dataset.query = text;
    Object.assign(remove, { type: "button", title: "forget this query" });
    remove.setAttribute("aria-label", `forget ${words}`);
    remove.addEventListener("click", () => keep(kept().filter((other) => other !== text)));
    saved.append(use, remove);
  }
}

if (saved) {
  document.getElementById("save").addEventListener("click", () => {
    const text = query.value.trim();
    if (text && !kept().includes(text)) keep([...kept(), text]);
  });
  show_kept();
}

if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  form.addEventListener("click", (event) => {
    if (event.target.dataset.query) {
      query.value = event.target.dataset.query;
      ask();
    }
  });
  query.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      ask();
    }
  });
}
