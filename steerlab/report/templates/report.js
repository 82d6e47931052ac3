(function () {
  "use strict";
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var boxes = Array.prototype.slice.call(document.querySelectorAll(".plot"));
  var PRINT_WIDTH = 660;
  var PRINTED_ROWS = 60;
  var LIGHTER = [
    ["#0072B2", "#4aa8e0"], ["rgba(0, 114, 178", "rgba(74, 168, 224"],
    ["#D55E00", "#f08a45"], ["rgba(213, 94, 0", "rgba(240, 138, 69"],
    ["#24292F", "#d5dae0"], ["#7A5195", "#b08fd0"], ["#009E73", "#35c79b"], ["rgba(0, 158, 115", "rgba(53, 199, 155"]
  ];

  function colours(isDark) {
    var ink = isDark ? "#e6e9ec" : "#24292f";
    return {
      "font.color": ink,
      "paper_bgcolor": "rgba(0,0,0,0)",
      "plot_bgcolor": "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": isDark ? "#2a3037" : "#ffffff",
      "hoverlabel.bordercolor": isDark ? "#4a535d" : "#c9d0d7",
      "hoverlabel.font.color": ink
    };
  }

  // the same hues, lighter, where the paper is dark
  function lighter(value) {
    if (Array.isArray(value)) { return value.map(lighter); }
    if (value !== null && typeof value === "object") {
      Object.keys(value).forEach(function (key) { value[key] = lighter(value[key]); });
      return value;
    }
    if (typeof value !== "string") { return value; }
    var found = LIGHTER.find(function (pair) { return value.indexOf(pair[0]) === 0; });
    return found ? value.replace(found[0], found[1]) : value;
  }

  function draw(box, isDark, width) {
    var figure = JSON.parse(document.getElementById(box.id + "-data").textContent);
    if (isDark) { lighter(figure.data); lighter(figure.layout.shapes || []); lighter(figure.layout.annotations || []); }
    var layout = Object.assign(figure.layout, {autosize: true, modebar: {bgcolor: "rgba(0,0,0,0)", orientation: "v"}});
    if (width) { layout.width = width; }
    return window.Plotly.react(box, figure.data, layout, {
      responsive: true,
      displaylogo: false,
      plotlyServerURL: "",
      modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]]
    }).then(function () { return window.Plotly.relayout(box, colours(isDark)); });
  }

  function redraw(isDark, width) {
    return Promise.all(boxes.map(function (box) { return draw(box, isDark, width); }));
  }

  // marks the page when every figure stands, for tests and for printing from scripts
  redraw(dark.matches).then(function () { document.documentElement.dataset.drawn = boxes.length; });

  dark.addEventListener("change", function (event) { redraw(event.matches); });

  var folded = [];
  window.addEventListener("beforeprint", function () {
    folded = Array.prototype.filter.call(document.querySelectorAll("details"), function (one) {
      return !one.open && one.querySelectorAll("tbody tr").length <= PRINTED_ROWS;
    });
    folded.forEach(function (one) { one.open = true; });
    redraw(false, PRINT_WIDTH);
  });
  window.addEventListener("afterprint", function () {
    folded.forEach(function (one) { one.open = false; });
    redraw(dark.matches);
  });
})();
