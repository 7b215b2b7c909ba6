"use strict";
// The genome page: igv.js on top, logos of what it shows below, a table of variants that drives it.
(() => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  // Letters in a box of 100 x 100, so that they can be stretched to any height.
  const LETTERS = {
    A: "M0 100L36 0H64L100 100H77L70 77H30L23 100ZM36 59H64L50 15Z",
    C: "M94 30A50 50 0 1 0 94 70L72 62A28 30 0 1 1 72 38Z",
    G: "M93 28A50 50 0 1 0 96 74V46H52V63H75V69A28 30 0 1 1 71 37Z",
    T: "M0 0H100V19H61V100H39V19H0Z",
    N: "M0 100V0H24L76 68V0H100V100H76L24 32V100Z",
  };
  const BASES = "ACGT";
  let selected = null;
  let view = null;

  // -- numbers ------------------------------------------------------------------------------------

  function unpack(packed) {
    // Little-endian uint16; 65535 is "no value".
    const raw = atob(packed.data);
    const out = new Float32Array(raw.length / 2);
    const scale = (packed.high - packed.low) / 65534;
    for (let i = 0; i < out.length; i++) {
      const q = raw.charCodeAt(2 * i) | (raw.charCodeAt(2 * i + 1) << 8);
      out[i] = q === 65535 ? NaN : packed.low + q * scale;
    }
    return out;
  }

  function element(name, attributes = {}, text = null) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    return made;
  }

  const grouped = (n) => n.toLocaleString("en-US");

  // -- logos --------------------------------------------------------------------------------------

  const unpacked = new Map();
  function matrix(logo) {
    if (!unpacked.has(logo)) unpacked.set(logo, unpack(logo.values));
    return unpacked.get(logo);
  }

  function columnsOf(logo, start, end) {
    // For each position the letters with their heights: [[base, height], ...].
    const values = matrix(logo);
    const columns = [];
    for (let place = start; place < end; place++) {
      const i = place - logo.start;
      if (i < 0 || 4 * i >= values.length) { columns.push([]); continue; }
      const row = Array.from(values.subarray(4 * i, 4 * i + 4));
      if (logo.kind === "probability") {
        if (row.some(Number.isNaN)) { columns.push([]); continue; }
        const bits = 2 + row.reduce((sum, p) => sum + (p > 0 ? p * Math.log2(p) : 0), 0);
        columns.push(row.map((p, b) => [BASES[b], Math.max(0, p * bits)]));
      } else {
        // One value for each substitution, none for the base that stands there: the letter of the
        // reference is as high as the mean loss.
        const present = row.filter((v) => !Number.isNaN(v));
        const reference = row.findIndex(Number.isNaN);
        if (present.length !== 3) { columns.push([]); continue; }
        columns.push([[BASES[reference], -present.reduce((a, b) => a + b, 0) / 3]]);
      }
    }
    return columns;
  }

  function sums(columns) {
    let high = 0, low = 0;
    for (const column of columns) {
      high = Math.max(high, column.reduce((s, [, v]) => s + Math.max(v, 0), 0));
      low = Math.min(low, column.reduce((s, [, v]) => s + Math.min(v, 0), 0));
    }
    return [low, high];
  }

  function drawLogo(logo, start, end, width, mark, most) {
    const left = 34, right = 4, top = 6, body = 84, foot = 18;
    const heat = logo.kind === "effects" ? 4 * 13 + 6 : 0;
    const svg = element("svg", {
      class: "logo", viewBox: `0 0 ${width} ${top + body + heat + foot}`, role: "img",
      "aria-label": `${logo.name}, ${grouped(start + 1)} to ${grouped(end)}`,
    });
    const step = (width - left - right) / (end - start);
    const columns = columnsOf(logo, start, end);
    let [low, high] = sums(columns);
    if (logo.kind === "probability") high = most;
    if (high === low) high = low + 1;
    const scale = body / (high - low);
    const zero = top + high * scale;
    if (mark && mark.start < end && mark.end > start) {
      const from = Math.max(mark.start, start), to = Math.min(mark.end, end);
      svg.append(element("rect", {
        class: "band", x: left + (from - start) * step, y: 0,
        width: Math.max((to - from) * step, 1), height: top + body + heat,
      }));
    }
    columns.forEach((column, i) => {
      let up = zero, down = zero;
      for (const [base, value] of column.slice().sort((a, b) => Math.abs(a[1]) - Math.abs(b[1]))) {
        const height = Math.abs(value) * scale;
        if (height < 0.3) continue;
        if (value > 0) up -= height;
        const y = value > 0 ? up : down;
        if (value < 0) down += height;
        svg.append(element("path", {
          d: LETTERS[base], class: `base-${base}`, "fill-rule": "evenodd",
          transform: `translate(${left + (i + 0.06) * step} ${y}) scale(${0.0088 * step} ${height / 100})`,
        }));
      }
    });
    svg.append(element("line", { x1: left, x2: width - right, y1: zero, y2: zero }));
    const digits = high - low < 1 ? 2 : 1;
    svg.append(element("text", { x: left - 5, y: top + 9, "text-anchor": "end" }, high.toFixed(digits)));
    if (low < 0) {
      svg.append(element("text", { x: left - 5, y: top + body, "text-anchor": "end" }, low.toFixed(digits)));
    } else {
      svg.append(element("text", { x: left - 5, y: zero, "text-anchor": "end" }, "0"));
    }
    if (heat) drawHeat(svg, logo, start, end, left, step, top + body + 6);
    ticks(svg, start, end, left, step, top + body + heat + 13);
    return svg;
  }

  function drawHeat(svg, logo, start, end, left, step, y) {
    const values = matrix(logo);
    let most = 0;
    for (let i = Math.max(0, 4 * (start - logo.start)); i < 4 * (end - logo.start); i++) {
      if (Math.abs(values[i]) > most) most = Math.abs(values[i]);
    }
    for (let b = 0; b < 4; b++) {
      svg.append(element("text", { x: left - 5, y: y + 13 * b + 10, "text-anchor": "end" }, BASES[b]));
      for (let place = start; place < end; place++) {
        const i = place - logo.start;
        if (i < 0 || 4 * i >= values.length) continue;
        const value = values[4 * i + b];
        const share = Number.isNaN(value) ? 0 : Math.min(1, Math.abs(value) / (most || 1)) ** 0.8;
        const cell = element("rect", {
          x: left + (place - start) * step, y: y + 13 * b, width: step + 0.2, height: 12,
          fill: value < 0 ? "#c0392b" : "#1a56c4", "fill-opacity": share.toFixed(3),
        });
        if (!Number.isNaN(value)) {
          cell.append(element("title", {}, `${grouped(place + 1)} to ${BASES[b]}: ${value.toFixed(3)}`));
        }
        svg.append(cell);
      }
    }
  }

  function ticks(svg, start, end, left, step, y) {
    const room = (end - start) * step;
    let gap = 1;
    for (const next of [5, 10, 20, 50, 100]) if (gap * step < Math.min(90, room)) gap = next;
    for (let place = Math.ceil((start + 1) / gap) * gap; place <= end; place += gap) {
      const x = left + (place - start - 0.5) * step;
      if (x - left < 26 || x > left + room - 26) continue;
      svg.append(element("text", { x, y, "text-anchor": "middle" }, grouped(place)));
    }
  }

  // -- both alleles ------------------------------------------------------------------------------

  function drawOverlay(one, width) {
    // Natural log-probabilities of the bases with REF and with ALT, in the same columns before and
    // behind the variant; the shorter allele leaves columns of the longer one empty.
    const [ref, alt] = one.alleles, wide = Math.max(ref.length, alt.length);
    const left = 34, right = 4, top = 6, body = 110, foot = 46;
    const before = one.before.length, after = one.after.length;
    const count = before + wide + after, step = (width - left - right) / count;
    const lines = [["REF", ref, unpack(one.ref)], ["ALT", alt, unpack(one.alt)]].map(
      ([name, allele, values]) => {
        const at = (c) => c < before + allele.length ? c : c < before + wide ? -1
          : c - wide + allele.length;
        const letters = one.before + allele + one.after;
        return { name, place: at, letters, values };
      });
    const finite = lines.flatMap((line) => [...line.values]).filter((v) => !Number.isNaN(v));
    const low = Math.floor(Math.min(-2, ...finite)), scale = body / -low;
    const svg = element("svg", {
      class: "logo overlay", viewBox: `0 0 ${width} ${top + body + foot}`, role: "img",
      "aria-label": "log-probability of each base with REF and with ALT",
    });
    svg.append(element("rect", { class: "band", x: left + before * step, y: 0,
      width: Math.max(wide * step, 1), height: top + body + foot - 14 }));
    const guess = top - Math.log(0.25) * scale;
    svg.append(element("line", { x1: left, x2: width - right, y1: top, y2: top }));
    svg.append(element("line", { class: "guess", x1: left, x2: width - right, y1: guess, y2: guess }));
    svg.append(element("text", { x: left - 5, y: top + 8, "text-anchor": "end" }, "0"));
    svg.append(element("text", { x: left - 5, y: guess + 4, "text-anchor": "end" }, "ln \u00bc"));
    svg.append(element("text", { x: left - 5, y: top + body, "text-anchor": "end" }, String(low)));
    lines.forEach((line, row) => {
      let path = "", drawing = false;
      for (let c = 0; c < count; c++) {
        const i = line.place(c), value = i < 0 ? NaN : line.values[i];
        const x = left + (c + 0.5) * step;
        if (Number.isNaN(value)) drawing = false;
        else {
          path += `${drawing ? "L" : "M"}${x.toFixed(1)} ${(top - value * scale).toFixed(1)}`;
          drawing = true;
        }
        if (i >= 0 && step >= 5) {
          svg.append(element("text", { x, y: top + body + 16 + 13 * row, "text-anchor": "middle",
            class: `base-${line.letters[i]}`, style: `font-size:${Math.min(11, step * 1.5)}px` },
            line.letters[i]));
        }
      }
      svg.append(element("path", { d: path, class: line.name }));
      svg.append(element("text", { x: left - 5, y: top + body + 16 + 13 * row, "text-anchor": "end",
        class: line.name }, line.name));
    });
    for (let c = 0; c < count; c++) {
      const cell = element("rect", { x: left + c * step, y: top, width: step, height: body,
        "fill-opacity": 0 });
      const texts = lines.map((line) => {
        const i = line.place(c);
        return i < 0 ? `${line.name} \u2013`
          : `${line.name} ${line.letters[i]} ${Number.isNaN(line.values[i]) ? "\u2013" : line.values[i].toFixed(3)}`;
      });
      cell.append(element("title", {}, texts.join(", ")));
      svg.append(cell);
    }
    const ends = [[one.start + 1, left, "start"],
      [one.start + before + ref.length + after, width - right, "end"]];
    for (const [place, x, anchor] of ends) {
      svg.append(element("text", { x, y: top + body + foot - 2, "text-anchor": anchor }, grouped(place)));
    }
    return svg;
  }

  function showLogos() {
    const panel = document.getElementById("logos");
    if (!panel || !view) return;
    const width = Math.max(320, Math.floor(panel.clientWidth));
    const most = Math.floor((width - 38) / 7.5);
    let { start, end } = view;
    let middle = Math.floor((start + end) / 2);
    const maps = data.logos.filter((logo) => logo.kind === "effects");
    if (selected) {
      middle = Math.floor((selected.start + selected.end) / 2);
    } else {
      // A view too wide for letters shows those of a heat map in it, which its middle may miss.
      const map = maps.find((logo) => logo.contig === view.contig
        && logo.start < end && logo.start + logo.length > start);
      const near = map && Math.min(Math.max(middle, map.start), map.start + map.length);
      if (map && Math.abs(near - middle) >= most / 2) {
        middle = Math.floor((Math.max(map.start, start) + Math.min(map.start + map.length, end)) / 2);
      }
    }
    if (end - start > most) {
      start = Math.max(start, Math.min(middle - Math.floor(most / 2), end - most));
      end = start + most;
    }
    const parts = [];
    const own = selected ? data.variant_logos.filter((l) => l.row === selected.row) : [];
    // All in one frame, letters below letters; those of probabilities on one scale.
    const shown = [...data.logos, ...own].filter((logo) => logo.contig === view.contig
      && logo.start < end && logo.start + logo.length > start);
    let high = 0.1;
    for (const logo of shown) {
      if (logo.kind === "probability") high = Math.max(high, sums(columnsOf(logo, start, end))[1]);
    }
    for (const map of maps.filter((logo) => !shown.includes(logo))) {
      const link = document.createElement("button");
      link.type = "button";
      link.textContent = `Go to the substitutions at ${map.contig}:${grouped(map.start + 1)}-`
        + grouped(map.start + map.length);
      link.addEventListener("click", () => {
        selected = null;
        const row = document.querySelector('#rows [aria-selected="true"]');
        if (row) row.setAttribute("aria-selected", "false");
        browser.search(`${map.contig}:${map.start + 1}-${map.start + map.length}`);
      });
      parts.push(link);
    }
    for (const logo of shown) {
      const title = document.createElement("h3");
      title.textContent = logo.name;
      const note = document.createElement("p");
      note.className = "note";
      note.textContent = `${logo.contig}:${grouped(start + 1)}-${grouped(end)}. ${logo.note}`;
      parts.push(title, note, drawLogo(logo, start, end, width, selected, high));
    }
    const both = selected && data.overlays.find((one) => one.row === selected.row);
    if (both) {
      const title = document.createElement("h3");
      title.textContent = "REF and ALT, base by base";
      const note = document.createElement("p");
      note.className = "note";
      note.textContent = "Natural log of the probability of each base, with either allele in place; "
        + "behind the variant the same bases stand in one column. Dashed: a guess among four.";
      parts.unshift(title, note, drawOverlay(both, width));
    }
    panel.replaceChildren(...parts);
  }

  // -- browser ------------------------------------------------------------------------------------

  const LABEL = 26; // CSS pixels at the top of a track that its label takes
  const RULER = 40;
  const STYLES = `
    .igv-navbar { height: auto !important; min-height: 32px; flex-wrap: wrap !important; row-gap: 4px; }
    @media (max-width: 640px) {
      .igv-navbar-left-container, .igv-navbar-right-container { flex: 1 1 100% !important; min-width: 0; width: 100% !important; }
      .igv-navbar-genomic-location, .igv-locus-size-group, .igv-search-container { flex: 1 1 auto !important; min-width: 0; }
    }
    .igv-current-genome { max-width: 8rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
    .igv-windowsize-panel-container { white-space: nowrap; }
    .ruler canvas { visibility: hidden; }
    .ruler svg { position: absolute; left: 0; top: 0; pointer-events: none; }
    .ruler text { font: 11px sans-serif; text-anchor: middle; }
    .ruler line { stroke: #000; }`;

  function lower(track) {
    // Numbers and their axis begin below the label of the track.
    const { draw, paintAxis } = track;
    const shifted = (context, paint) => {
      context.save();
      context.translate(0, LABEL);
      paint();
      context.restore();
    };
    track.draw = (options) => shifted(options.context, () => draw.call(
      track, { ...options, pixelHeight: options.pixelHeight - LABEL }));
    Object.defineProperty(track, "paintAxis", {  // inherited as a getter without a setter
      value: (context, width, height, color) => shifted(context, () => paintAxis.call(
        track, context, width, height - LABEL, color)),
    });
  }

  function drawRuler() {
    // igv.js cuts the labels at the edges of its ruler; these stay inside, written in bases.
    const place = browser.getRulerTrackView().viewports[0].viewportElement;
    const frames = browser.referenceFrameList;
    const single = frames.length === 1 && place.clientWidth > 0;
    place.classList.toggle("ruler", single);
    for (const old of place.querySelectorAll("svg")) old.remove();
    if (!single) return;
    const width = place.clientWidth, step = 1 / frames[0].bpPerPixel, from = frames[0].start;
    const svg = element("svg", { width, height: RULER });
    const last = from + width / step;
    const room = 6.6 * grouped(Math.ceil(last)).length;
    const least = (room + 16) / step;
    const power = 10 ** Math.max(0, Math.floor(Math.log10(least)));
    const gap = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= least);
    let free = 0;
    svg.append(element("line", { x1: 0, x2: width, y1: RULER - 2, y2: RULER - 2 }));
    for (let at = Math.ceil((from + 0.5) / gap) * gap; at <= last; at += gap) {
      const x = (at - 0.5 - from) * step;  // the middle of the base
      svg.append(element("line", { x1: x, x2: x, y1: RULER - 7, y2: RULER - 2 }));
      const middle = Math.min(Math.max(x, room / 2), width - room / 2);
      if (middle - room / 2 < free) continue;
      svg.append(element("text", { x: middle, y: RULER - 11 }, grouped(at)));
      free = middle + room / 2 + 6;
    }
    place.append(svg);
  }

  // igv.js puts names of tracks and features into the page as HTML; here they are text.
  const safe = (text) => String(text ?? "").replaceAll("&nbsp;", " ")
    .replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

  function trackOf(track) {
    const common = { name: safe(track.name), height: track.height + LABEL - 6, order: track.order };
    if (track.kind === "signal") {
      const features = [];
      for (const segment of track.segments) {
        const values = unpack(segment.values);
        for (let i = 0; i < values.length; i++) {
          if (Number.isNaN(values[i])) continue;
          const start = segment.start + i;
          features.push({ chr: segment.contig, start, end: start + 1, value: values[i] });
        }
      }
      return { ...common, type: "wig", features, autoscale: true, color: track.color,
        altColor: track.below || track.color, graphType: "bar" };
    }
    const features = track.features.map(([chr, start, end, name, strand, exons]) => ({
      chr, start, end, name, strand,
      ...(exons && exons.length ? { exons: exons.map(([s, e]) => ({ start: s, end: e })) } : {}),
    }));
    return { ...common, type: "annotation", features, color: track.color, displayMode: "EXPANDED", margin: LABEL,
      searchable: true, searchableFields: ["name"] };
  }

  let browser = null;
  async function openBrowser() {
    const place = document.getElementById("browser");
    browser = await igv.createBrowser(place, {
      reference: { id: data.genome.name, name: data.genome.name, fastaURL: data.genome.fasta,
        indexed: false, wholeGenomeView: false },
      locus: data.locus, tracks: data.tracks.map(trackOf), search: false, minimumBases: 20,
      loadDefaultGenomes: false, queryParametersSupported: false, showSVGButton: true,
      showSampleNameButton: false, showROITableButton: false, showMultiSelectButton: false,
      showIdeogram: false, showChromosomeWidget: data.contigs > 1,
    });
    const follow = (frames) => {
      const frame = (Array.isArray(frames) ? frames : browser.referenceFrameList)[0];
      if (!frame) return;
      drawRuler();
      const start = Math.floor(Number(String(frame.start).replaceAll(",", "")));
      const end = Math.ceil(Number(String(frame.end).replaceAll(",", "")));
      view = { contig: frame.chr, start, end };
      showLogos();
    };
    const styles = document.createElement("style");
    styles.textContent = STYLES;
    browser.root.getRootNode().append(styles);
    for (const { track } of browser.trackViews) if (track.type === "wig") lower(track);
    browser.repaintViews();
    browser.on("locuschange", follow);
    browser.on("trackclick", (_, found) => {
      const lines = (found || []).map((one) => /^<hr/.test(one) ? "<hr>" : `<div>${one.name
        ? `<span>${safe(one.name)}</span>&nbsp;&nbsp;${safe(one.value)}` : safe(one)}</div>`);
      return lines.length ? lines.join("") : false;
    });
    follow(null);
  }

  // -- table --------------------------------------------------------------------------------------

  function openTable() {
    const table = data.table;
    const box = document.getElementById("rows");
    if (!table || !box) return;
    const body = box.querySelector("tbody");
    const heads = [...box.querySelectorAll("th")];
    const search = document.getElementById("search");
    const scoreColumn = document.getElementById("score-column");
    const [least, most, consequence, gene] = ["least", "most", "consequence", "gene"].map(
      (name) => document.getElementById(name));
    const [terms, genes] = ["consequence", "gene"].map(
      (name) => table.columns.findIndex((column) => column.name === name));
    const count = document.getElementById("count");
    const texts = table.rows.map((row) => row.cells.join("\t").toLowerCase());
    let order = table.rows.map((_, i) => i), sorted = null, drawn = 0;

    function cell(column, value) {
      const made = document.createElement("td");
      const missing = value === null || value === "";
      made.className = [column.kind === "text" ? "text" : "", column.minor ? "minor" : "",
        missing ? "nothing" : ""].join(" ").trim();
      made.textContent = missing ? "\u2013"
        : column.kind === "number" ? value.toFixed(column.digits)
        : column.kind === "place" ? grouped(value) : value;
      if (column.kind === "text" && !missing) made.title = value;
      return made;
    }

    function more() {
      const part = document.createDocumentFragment();
      for (const i of order.slice(drawn, drawn + 60)) {
        const row = document.createElement("tr");
        row.tabIndex = 0;
        row.dataset.row = i;
        row.setAttribute("aria-selected", String(selected !== null && selected.row === i));
        table.columns.forEach((column, c) => row.append(cell(column, table.rows[i].cells[c])));
        part.append(row);
        drawn += 1;
      }
      body.append(part);
    }

    function show() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const bound = (input, none) => input && input.value !== "" ? Number(input.value) : none;
      const low = bound(least, -Infinity), high = bound(most, Infinity);
      const scored = scoreColumn && (low > -Infinity || high < Infinity) ? Number(scoreColumn.value) : -1;
      const term = consequence ? consequence.value : "";
      const name = gene ? gene.value.trim().toLowerCase() : "";
      order = [];
      for (let i = 0; i < table.rows.length; i++) {
        if (!words.every((word) => texts[i].includes(word))) continue;
        const cells = table.rows[i].cells, value = cells[scored];
        if (scored >= 0 && (value === null || value < low || value > high)) continue;
        if (term && cells[terms] !== term) continue;
        if (name && !String(cells[genes]).toLowerCase().includes(name)) continue;
        order.push(i);
      }
      if (sorted) {
        const { column, sign } = sorted;
        order.sort((a, b) => {
          const x = table.rows[a].cells[column], y = table.rows[b].cells[column];
          if (x === y) return a - b;
          if (x === null || x === "") return 1;
          if (y === null || y === "") return -1;
          return (x < y ? -1 : 1) * sign;
        });
      }
      drawn = 0;
      body.replaceChildren();
      box.scrollTop = 0;
      more();
      count.textContent = `${grouped(order.length)} of ${grouped(table.rows.length)} alleles`;
    }

    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const numeric = table.columns[column].kind === "number";
      const first = numeric ? -1 : 1;
      const sign = sorted && sorted.column === column ? -sorted.sign : first;
      sorted = { column, sign };
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      show();
    }));

    function csv() {
      // The rows shown, in their order. Text that a spreadsheet would run as a formula is marked.
      const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
      const written = (value, column) => value === null ? ""
        : column.kind !== "text" ? String(value)
        : quoted(/^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value));
      const lines = [table.columns.map((column) => quoted(column.name)).join(",")];
      for (const i of order) {
        lines.push(table.rows[i].cells.map((value, c) => written(value, table.columns[c])).join(","));
      }
      return lines.join("\r\n") + "\r\n";
    }

    document.getElementById("export").addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
      link.download = `${document.title.split(" ")[0].replace(/[^\w.-]+/g, "_")}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });

    async function choose(row) {
      for (const other of body.querySelectorAll('[aria-selected="true"]')) {
        other.setAttribute("aria-selected", "false");
      }
      row.setAttribute("aria-selected", "true");
      const chosen = table.rows[Number(row.dataset.row)];
      selected = { row: Number(row.dataset.row), start: chosen.start, end: chosen.end };
      const middle = Math.floor((chosen.start + chosen.end) / 2);
      if (browser) {
        await browser.search(`${chosen.contig}:${Math.max(1, middle - 38)}-${middle + 40}`);
      }
      showLogos();
    }

    body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (row) choose(row);
    });
    body.addEventListener("keydown", (event) => {
      const row = event.target.closest("tr");
      if (!row) return;
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(row); }
      const next = event.key === "ArrowDown" ? row.nextElementSibling
        : event.key === "ArrowUp" ? row.previousElementSibling : null;
      if (next) { event.preventDefault(); next.focus(); }
    });
    box.addEventListener("scroll", () => {
      if (box.scrollTop + box.clientHeight > box.scrollHeight - 400 && drawn < order.length) more();
    });
    for (const control of [search, scoreColumn, least, most, consequence, gene]) {
      if (control) control.addEventListener("input", show);
    }
    show();
  }

  openTable();
  openBrowser().then(
    () => document.body.setAttribute("data-ready", "true"),
    (error) => {
      document.body.setAttribute("data-ready", "failed");
      const note = document.createElement("p");
      note.className = "failed";
      note.textContent = `The genome browser did not start: ${error.message || error}`;
      document.getElementById("browser").before(note);  // the browser itself is a shadow tree
    });
  let waiting = 0;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (browser) drawRuler();
      showLogos();
    }, 150);
  });
})();
