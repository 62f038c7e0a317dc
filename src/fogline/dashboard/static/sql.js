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
    body: JSON.stringify({ sql: query.value }),
  });
  const found = await response.json();
  if (!response.ok) {
    answer.replaceChildren(element("pre", found.error, "error"));
    return;
  }
  const count = found.more ? `The first ${found.rows.length} rows.` : `${found.rows.length} rows.`;
  answer.replaceChildren(element("p", count, "faint"), table(found));
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
