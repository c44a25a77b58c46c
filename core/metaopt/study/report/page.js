// Draws the figures that stand in the page as JSON, one after another so that the page can be read meanwhile.
(async () => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const template = () => {
    const axis = {
      gridcolor: colour("--rule"), linecolor: colour("--rule"), tickcolor: colour("--rule"),
      zeroline: false, automargin: true, title: { standoff: 8 },
    };
    return {
      layout: {
        font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("--quiet") },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 8, r: 12, t: 12, b: 8 },
        xaxis: axis, yaxis: axis, coloraxis: { colorbar: { outlinewidth: 0 } },
        legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
        hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--rule"), font: { color: colour("--ink") } },
        dragmode: touch ? false : "zoom",
      },
    };
  };

  const touch = window.matchMedia("(pointer: coarse)").matches; // where a drag is to scroll the page
  const config = { responsive: true, displayModeBar: false };
  const drawn = [];
  for (const place of document.querySelectorAll(".plot")) {
    const figure = JSON.parse(place.querySelector("script").textContent);
    try {
      await Plotly.newPlot(place, figure.data, { ...figure.layout, template: template() }, config);
      place.dataset.drawn = "yes";
      drawn.push(place);
    } catch (error) {
      place.dataset.drawn = "no";
      place.textContent = "This figure could not be drawn.";
      console.error(place.id, error);
    }
    await new Promise((resume) => setTimeout(resume));
  }
  dark.addEventListener("change", () => drawn.forEach((place) => Plotly.relayout(place, { template: template() })));
  document.documentElement.dataset.drawn = String(drawn.length);
})();
