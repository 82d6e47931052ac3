(function () {
  "use strict";
  var root = document.documentElement;
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var PRINT_WIDTH = 660;
  var NARROW = 560, LETTER = 6.6, LINE = 15, HEIGHT = 380;
  var PRINTED_ROWS = 60;
  var MOST_HITS = 30;
  var LIGHTER = [
    ["#0072B2", "#4aa8e0"], ["rgba(0, 114, 178", "rgba(74, 168, 224"],
    ["#D55E00", "#f08a45"], ["rgba(213, 94, 0", "rgba(240, 138, 69"],
    ["#24292F", "#d5dae0"], ["#7A5195", "#b08fd0"], ["#009E73", "#35c79b"], ["rgba(0, 158, 115", "rgba(53, 199, 155"]
  ];

  function all(selector, inside) { return Array.prototype.slice.call((inside || document).querySelectorAll(selector)); }

  // -- pages: the one that the address names is shown, all of them without this script and on paper --

  var pages = all(".page");

  function target() {
    var id = decodeURIComponent(window.location.hash.slice(1));
    return (id && document.getElementById(id)) || pages[0];
  }

  function show() {
    var wanted = target();
    var page = wanted.closest(".page") || pages[0];
    pages.forEach(function (one) { one.classList.toggle("shown", one === page); });
    all("nav li a").forEach(function (link) {
      if (link.hash === "#" + page.id) { link.setAttribute("aria-current", "page"); } else { link.removeAttribute("aria-current"); }
    });
    for (var outer = wanted; outer && outer !== page; outer = outer.parentElement) {
      if (outer.tagName === "DETAILS") { outer.open = true; }
    }
    drawShown().then(function () {
      if (wanted === page) { window.scrollTo(0, 0); } else { wanted.scrollIntoView(); }
    });
  }

  // -- figures: drawn when they are first seen --

  var boxes = all(".plot");

  // DEFLATE (RFC 1951), at once: what is printed from a script has no time for the browser's own, which answers later
  function inflated(bytes, size) {
    var BASES = [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
    var FAR = [1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145,
      8193, 12289, 16385, 24577];
    var ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    var out = new Uint8Array(size), written = 0, at = 0, hold = 0, held = 0;

    function bits(need) {
      while (held < need) { hold |= bytes[at++] << held; held += 8; }
      var value = hold & ((1 << need) - 1);
      hold >>>= need;
      held -= need;
      return value;
    }
    function tree(lengths) {
      var counts = new Uint16Array(16), starts = new Uint16Array(16), symbols = new Uint16Array(lengths.length);
      lengths.forEach(function (length) { counts[length] += 1; });
      counts[0] = 0;
      for (var i = 1; i < 15; i += 1) { starts[i + 1] = starts[i] + counts[i]; }
      lengths.forEach(function (length, symbol) { if (length) { symbols[starts[length]++] = symbol; } });
      return {counts: counts, symbols: symbols};
    }
    function symbolOf(codes) {
      for (var code = 0, first = 0, index = 0, length = 1; length < 16; length += 1) {
        code |= bits(1);
        var count = codes.counts[length];
        if (code - count < first) { return codes.symbols[index + code - first]; }
        index += count;
        first = (first + count) << 1;
        code <<= 1;
      }
      throw new Error("the packed library is damaged");
    }
    function ownTrees() {
      var literals = bits(5) + 257, distances = bits(5) + 1, coded = bits(4) + 4, lengths = [], i;
      for (i = 0; i < 19; i += 1) { lengths[ORDER[i]] = i < coded ? bits(3) : 0; }
      var codes = tree(lengths);
      for (lengths = []; lengths.length < literals + distances;) {
        var symbol = symbolOf(codes), last = lengths[lengths.length - 1];
        if (symbol < 16) { lengths.push(symbol); continue; }
        var times = symbol === 16 ? 3 + bits(2) : symbol === 17 ? 3 + bits(3) : 11 + bits(7);
        for (i = 0; i < times; i += 1) { lengths.push(symbol === 16 ? last : 0); }
      }
      return [tree(lengths.slice(0, literals)), tree(lengths.slice(literals))];
    }
    function block(trees) {
      for (var symbol = symbolOf(trees[0]); symbol !== 256; symbol = symbolOf(trees[0])) {
        if (symbol < 256) { out[written++] = symbol; continue; }
        symbol -= 257;
        var extra = symbol < 8 || symbol === 28 ? 0 : (symbol >> 2) - 1;
        var length = BASES[symbol] + bits(extra);
        var far = symbolOf(trees[1]);
        var distance = FAR[far] + bits(far < 4 ? 0 : (far >> 1) - 1);
        for (; length; length -= 1) { out[written] = out[written - distance]; written += 1; }
      }
    }
    for (var last = 0; !last;) {
      last = bits(1);
      if (bits(2) !== 2) { throw new Error("the packed library has another kind of block"); }
      block(ownTrees());
    }
    return new TextDecoder().decode(out);
  }

  // the library is unpacked when the first figure is drawn
  function library() {
    var packed = document.getElementById("plotly");
    if (window.Plotly || !packed) { return; }
    var bytes = Uint8Array.from(atob(packed.textContent), function (letter) { return letter.charCodeAt(0); });
    var script = document.createElement("script");
    script.textContent = inflated(bytes, Number(packed.dataset.size));
    document.head.appendChild(script);
  }

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

  function wrap(text, letters) {
    var lines = [];
    text.split(" ").forEach(function (word) {
      var last = lines.length - 1;
      if (last >= 0 && (lines[last] + " " + word).length <= letters) { lines[last] += " " + word; } else { lines.push(word); }
    });
    return lines;
  }

  // category labels that would touch are turned, in as many lines as a category is wide
  function turnLabels(layout, room) {
    var axis = layout.xaxis;
    var texts = axis && axis.ticktext;
    if (!texts || !texts.length) { return; }
    var step = room / texts.length;
    var longest = Math.max.apply(null, texts.join("<br>").split("<br>").map(function (line) { return line.length; }));
    if (longest * LETTER < step) { return; }
    var lines = Math.max(1, Math.floor(step / LINE));
    axis.ticktext = texts.map(function (text) {
      var plain = text.replace(/<br>/g, " ");
      return wrap(plain, Math.max(16, Math.ceil(plain.length / lines))).join("<br>");
    });
    axis.tickangle = -90;
    longest = Math.max.apply(null, axis.ticktext.join("<br>").split("<br>").map(function (line) { return line.length; }));
    layout.height = (layout.height || HEIGHT) + Math.max(0, longest * LETTER - 40);
  }

  // a phone has no room for names at the ends of lines, nor for titles of panels in one line
  function narrow(data, layout, width) {
    data.forEach(function (trace) {
      var bar = trace.colorbar;
      if (!bar || bar.orientation !== "h" || !bar.ticktext) { return; }
      bar.tickvals = [bar.tickvals[0], bar.tickvals[2]];
      bar.ticktext = [bar.ticktext[0], bar.ticktext[2]];
      bar.tickfont = {size: 9};
      bar.len *= 0.85;
    });
    var room = width - 70;
    var direct = (layout.annotations || []).some(function (note) { return note.name === "direct"; });
    layout.annotations = (layout.annotations || []).filter(function (note) { return note.name !== "direct"; });
    if (direct) { layout.showlegend = true; layout.margin.r = 20; }
    var titles = layout.annotations.filter(function (note) { return note.xref === "paper" && note.yref === "paper"; });
    var most = 1;
    titles.forEach(function (note) {
      var lines = wrap(note.text, Math.floor(room / titles.length / LETTER));
      note.text = lines.join("<br>");
      most = Math.max(most, lines.length);
    });
    layout.margin.t += (most - 1) * LINE;
    layout.height = (layout.height || HEIGHT) + (most - 1) * LINE;
    turnLabels(layout, room);
  }

  function draw(box, isDark, width) {
    library();
    var figure = JSON.parse(document.getElementById(box.id.replace(/-plot$/, "-data")).textContent);
    if (isDark) { lighter(figure.data); lighter(figure.layout.shapes || []); lighter(figure.layout.annotations || []); }
    var layout = Object.assign(figure.layout, {autosize: true, modebar: {bgcolor: "rgba(0,0,0,0)", orientation: "v"}});
    layout.width = width;
    if (width < NARROW) { narrow(figure.data, layout, width); }
    box.dataset.look = [isDark, width].join();
    return window.Plotly.react(box, figure.data, layout, {
      responsive: false,
      displaylogo: false,
      plotlyServerURL: "",
      modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]]
    }).then(function () { return window.Plotly.relayout(box, colours(isDark)); });
  }

  // marks the page when every figure in sight stands, for tests and for printing from scripts
  function drawShown() {
    delete root.dataset.drawn;
    return Promise.all(boxes.map(function (box) {
      var width = Math.floor(box.clientWidth);
      return width && box.dataset.look !== [dark.matches, width].join() ? draw(box, dark.matches, width) : null;
    })).then(function () {
      root.dataset.drawn = boxes.filter(function (box) { return box.dataset.look; }).length;
    });
  }

  root.classList.add("paged");
  window.addEventListener("hashchange", show);
  show();
  document.addEventListener("toggle", function (event) {
    if (event.target.open && event.target.querySelector(".plot")) { drawShown(); }
  }, true);
  dark.addEventListener("change", drawShown);
  var waiting = 0;
  window.addEventListener("resize", function () {
    window.clearTimeout(waiting);
    waiting = window.setTimeout(drawShown, 120);
  });

  // -- paper: what the page shows, every sentence, and every table that is not endless --

  var folded = [];
  window.addEventListener("beforeprint", function () {
    folded = all(".argument details, details.tables, details.tables .table").filter(function (one) {
      return !one.open && (!one.matches(".table") || one.querySelectorAll("tbody tr").length <= PRINTED_ROWS);
    });
    folded.forEach(function (one) { one.open = true; });
    boxes.forEach(function (box) {
      if (!box.closest("details:not([open])")) { draw(box, false, PRINT_WIDTH); }
    });
  });
  window.addEventListener("afterprint", function () {
    folded.forEach(function (one) { one.open = false; });
    drawShown();
  });

  // -- search: sentences, figures and rows of tables, each with the place that it stands in --

  var field = document.getElementById("search");
  var hits = document.getElementById("hits");
  if (!field) { return; }

  function place(element) {
    var at = element.closest("[id]");
    return at.id.replace(/-title$/, "");
  }

  function said(element) {
    var texts = element.cells ? Array.from(element.cells, function (cell) { return cell.textContent; }) : [element.textContent];
    return texts.join(" · ").replace(/\s+/g, " ").trim();
  }

  function found(words) {
    return all("main h2, main h3, main p, main figcaption, main summary, main tbody tr").filter(function (element) {
      var text = said(element).toLowerCase();
      return words.every(function (word) { return text.indexOf(word) >= 0; });
    });
  }

  function hit(element) {
    var item = document.createElement("li");
    var link = document.createElement("a");
    var page = element.closest(".page");
    var heading = page && page.querySelector("h2");
    var text = said(element);
    link.href = "#" + place(element);
    link.textContent = (heading ? heading.firstChild.textContent.trim() + ": " : "") + (text.length > 120 ? text.slice(0, 119) + "…" : text);
    item.appendChild(link);
    return item;
  }

  function search() {
    var words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    var elements = words.length ? found(words) : [];
    var items = elements.slice(0, MOST_HITS).map(hit);
    if (words.length && !items.length) {
      items = [document.createElement("li")];
      items[0].textContent = "Nothing holds these words.";
    }
    hits.replaceChildren.apply(hits, items);
    hits.hidden = !words.length;
  }

  field.addEventListener("input", search);
  hits.addEventListener("click", function (event) { if (event.target.closest("a")) { hits.hidden = true; } });
  document.addEventListener("keydown", function (event) {
    if (event.key === "Escape") { hits.hidden = true; }
    if (event.key === "/" && !event.target.closest("input, textarea")) { event.preventDefault(); field.focus(); }
  });
})();
