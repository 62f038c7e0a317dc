// The page of a run follows it: parts that differ are replaced, figures drawn anew, figures that came up added.

import { draw_all } from "./figures.js";
import { follow } from "./live.js";

const page = document.querySelector("[data-live]");

function replace(html) {
  const made = document.createElement("template");
  made.innerHTML = html;
  const next = made.content.firstElementChild;
  const here = document.getElementById(next.id);
  if (!here || here.isEqualNode(next)) return;
  const open = [...here.querySelectorAll("details")].map((details) => details.open);
  const focus = here.contains(document.activeElement) ? document.activeElement.className : null;
  [...next.querySelectorAll("details")].forEach((details, at) => (details.open = open[at] ?? details.open));
  here.replaceWith(next);
  if (focus) next.querySelector(`[class="${CSS.escape(focus)}"]`)?.focus();
}

async function update(changed, gone) {
  const response = await fetch(page.dataset.parts);
  if (!response.ok || gone.length > 0) {
    location.assign("/");
    return;
  }
  const news = await response.json();
  Object.values(news.parts).forEach(replace);
  const shown = [...document.querySelectorAll(".figures .figure")].map((figure) => figure.id.replace("figure-", ""));
  if (news.figures.some((name) => !shown.includes(name))) {
    location.reload();
    return;
  }
  await draw_all();
}

async function post(button) {
  button.disabled = true;
  const response = await fetch(button.dataset.post, { method: "POST" });
  if (!response.ok) button.textContent = (await response.json()).error;
}

if (page) {
  follow(page.dataset.live, "none" in page.dataset ? async () => location.reload() : update);
  page.addEventListener("click", (event) => {
    const button = event.target.closest("[data-post]");
    if (button) post(button);
  });
}
