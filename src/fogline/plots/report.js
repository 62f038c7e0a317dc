"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const touched = window.matchMedia("(pointer: coarse)");

function draw() {
  for (const figure of figures) {
    const look = structuredClone(dark.matches ? figure.dark : figure.light);
    const data = structuredClone(figure.data).map((trace, index) => ({ ...trace, ...look.traces[index] }));
    // Under a finger, dragging scrolls the page; under a mouse it zooms, and a double click zooms out.
    look.layout.dragmode = touched.matches ? false : "zoom";
    const config = { responsive: true, displayModeBar: false };
    Plotly.react(figure.id, data, look.layout, config);
  }
}

draw();
dark.addEventListener("change", draw);
