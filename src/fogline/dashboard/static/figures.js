// Draws every figure from its address, in the look of the page; a figure is seen only once it is drawn.

const touched = window.matchMedia("(pointer: coarse)");
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function look() {
  const theme = document.documentElement.dataset.theme;
  return theme === "dark" || (theme === "system" && dark.matches) ? "dark" : "light";
}

async function draw(place) {
  const address = place.dataset.figure;
  const response = await fetch(`${address}${address.includes("?") ? "&" : "?"}look=${look()}`);
  const figure = await response.json();
  if (!response.ok) {
    say(place, figure.error);
    return;
  }
  if (!window.Plotly) return;
  place.classList.remove("said");
  // Zoom and what is hidden stay as they are when new data comes.
  const layout = { ...figure.layout, uirevision: "kept", dragmode: touched.matches ? false : "zoom" };
  await window.Plotly.react(place, figure.data, layout, { responsive: true, displayModeBar: false });
  place.classList.add("drawn");
}

function say(place, words) {
  if (place.classList.contains("drawn")) return;
  place.textContent = words;
  place.classList.add("said");
}

export async function draw_all() {
  for (const place of document.querySelectorAll("[data-figure]")) await draw(place);
}

window.addEventListener("look", draw_all);
draw_all();
