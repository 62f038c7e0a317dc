// The page of a run follows it: parts that differ are replaced, figures drawn anew, figures that came up added.

import { draw_all } from "./figures.js";
import { follow } from "./live.js";
import { replace } from "./parts.js";

const page = document.querySelector("[data-live]");

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
