// Follows a stream of changes, and calls back for one change at a time, never while the page is hidden.

import { lost, tell_times } from "./shell.js";

const REST = 4; // an update may take a fifth of the time: the machine is there to train

export function follow(address, update) {
  let waiting = new Set();
  let gone = new Set();
  let busy = false;

  async function work() {
    if (busy || document.hidden || (waiting.size === 0 && gone.size === 0)) return;
    busy = true;
    const [changed, removed] = [[...waiting], [...gone]];
    waiting = new Set();
    gone = new Set();
    const begun = performance.now();
    try {
      await update(changed, removed);
      tell_times();
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // a request that found nobody
      lost(true);
    }
    setTimeout(() => {
      busy = false;
      work();
    }, REST * (performance.now() - begun));
  }

  const stream = new EventSource(address);
  stream.addEventListener("changed", (event) => {
    const news = JSON.parse(event.data);
    news.changed.forEach((name) => waiting.add(name));
    news.gone.forEach((name) => gone.add(name));
    work();
  });
  stream.addEventListener("open", () => lost(false));
  stream.addEventListener("error", () => lost(true));
  window.addEventListener("pagehide", () => stream.close());
  document.addEventListener("visibilitychange", work);
}
