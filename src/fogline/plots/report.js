"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function draw() {
  for (const figure of figures) {
    const look = structuredClone(dark.matches ? figure.dark : figure.light);
    const data = structuredClone(figure.data).map((trace, index) => ({ ...trace, ...look.traces[index] }));
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
    Plotly.react(figure.id, data, look.layout, config);
  }
}

draw();
dark.addEventListener("change", draw);
