// Draws every figure from its address, in the look of the page; a figure is seen only once it is drawn.

const touched = window.matchMedia("(pointer: coarse)");
const dark = window.matchMedia("(prefers-color-scheme: dark)");

export function look() {
  const theme = document.documentElement.dataset.theme;
  return theme === "dark" || (theme === "system" && dark.matches) ? "dark" : "light";
}

// Plotly is large: data is asked for while the browser still reads it.
const plotly = document.getElementById("plotly");
export const ready = window.Plotly || !plotly ? Promise.resolve() : new Promise((done) => plotly.addEventListener("load", done));

async function ask(place) {
  const address = place.dataset.figure;
  const response = await fetch(`${address}${address.includes("?") ? "&" : "?"}look=${look()}`);
  return [response.ok, await response.json()];
}

async function draw(place, answer) {
  const [ok, figure] = await answer;
  await ready;
  if (!ok) {
    say(place, figure.error);
    return;
  }
  place.classList.remove("said");
  // Zoom and what is hidden stay as they are when new data comes. A finger that drags is to scroll, unless the page asks.
  const layout = { ...figure.layout, uirevision: "kept", dragmode: place.dataset.drag ?? (touched.matches ? false : "zoom") };
  await window.Plotly.react(place, figure.data, layout, { responsive: true, displayModeBar: false });
  place.classList.add("drawn");
  place.dispatchEvent(new Event("drawn"));
}

function say(place, words) {
  if (place.classList.contains("drawn")) return;
  place.textContent = words;
  place.classList.add("said");
}

export async function draw_all() {
  const asked = [...document.querySelectorAll("[data-figure]")].map((place) => [place, ask(place)]);
  for (const [place, answer] of asked) await draw(place, answer);
}

window.addEventListener("look", draw_all);
draw_all();
