// Follows a stream of changes, and calls back for one change at a time, never while the page is hidden.

import { lost, tell_times } from "./shell.js";

const REST = 4; // an update may take a fifth of the time: the machine is there to train

// Calls update(changed, gone) with names of runs; changed is null where anything may have changed.
export function follow(address, update) {
  let changed = new Set();
  let gone = new Set();
  let everything = false;
  let busy = false;
  let stream = null;
  let asked = false;

  async function work() {
    if (busy || document.hidden || !(everything || changed.size || gone.size)) return;
    busy = true;
    const news = [everything ? null : [...changed], [...gone]];
    [changed, gone, everything] = [new Set(), new Set(), false];
    const begun = performance.now();
    try {
      await update(...news);
      tell_times();
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // a request that found nobody
      lost(true);
    }
    const rest = REST * (performance.now() - begun);
    setTimeout(() => {
      busy = false;
      work();
    }, rest);
  }

  function open() {
    // With the first stream the page is as new as what it tells; with a later one it is not, also where the first was
    // given up before it was there.
    let known = !asked;
    asked = true;
    // What was written between the asking for the page and this moment is told, too.
    stream = new EventSource(`${address}?since=${(performance.timeOrigin / 1000 - 1).toFixed(3)}`);
    stream.addEventListener("changed", (event) => {
      const news = JSON.parse(event.data);
      news.changed.forEach((name) => changed.add(name));
      news.gone.forEach((name) => gone.add(name));
      work();
    });
    stream.addEventListener("open", () => {
      lost(false);
      everything ||= !known;
      known = false;
      work();
    });
    stream.addEventListener("error", () => lost(true));
  }

  // A browser keeps few connections to one place: pages that nobody sees leave theirs to others.
  function turn() {
    if (document.hidden) stream.close();
    else open();
  }

  open();
  document.addEventListener("visibilitychange", turn);
  window.addEventListener("pagehide", () => stream.close());
  window.addEventListener("pageshow", (event) => event.persisted && open());
}
