// Parts of a page that are replaced when they differ; what is open, and where the focus is, stays.

export function replace(html) {
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
