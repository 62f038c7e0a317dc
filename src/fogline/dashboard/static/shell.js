// What every page has: the theme, times that stay true, and a word when the dashboard is gone.

const theme = document.getElementById("theme");
const root = document.documentElement;

theme.addEventListener("change", () => {
  root.dataset.theme = theme.value;
  // A cookie, so that the server writes the page in the right look and nothing flashes.
  document.cookie = `fogline-theme=${theme.value}; path=/; max-age=31536000; samesite=strict`;
  window.dispatchEvent(new Event("look"));
});

window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (root.dataset.theme === "system") window.dispatchEvent(new Event("look"));
});

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

export function tell_times() {
  const now = Date.now() / 1000;
  for (const time of document.querySelectorAll("time[data-at]")) {
    const passed = Math.max(0, now - Number(time.dataset.at));
    const [length, unit] = UNITS.find(([length]) => passed >= length) ?? [1, "s"];
    time.textContent = `${Math.round(passed / length)} ${unit} ago`;
  }
}

setInterval(tell_times, 5000);

export function lost(is_lost) {
  document.getElementById("lost").hidden = !is_lost;
}
