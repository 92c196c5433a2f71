"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const templates = read("templates");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { displayModeBar: false, responsive: true };

  const draw = () => {
    for (const place of document.querySelectorAll("[data-figure]")) {
      const figure = figures[Number(place.dataset.figure)];
      const layout = structuredClone(figure.layout);
      layout.template = structuredClone(templates[dark.matches ? "dark" : "light"]);
      if (!layout.height) layout.height = 300;
      Plotly.react(place, structuredClone(figure.data), layout, config);
    }
  };
  dark.addEventListener("change", draw);
  draw();
})();
