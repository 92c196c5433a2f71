"use strict";
// Every text from a model or corpus enters the document through textContent, never as markup.
(() => {
  const look = JSON.parse(document.getElementById("look").textContent);
  const strings = look.strings;
  const n = look.latent.length;
  const PAGE = 50;
  const SVG = "http://www.w3.org/2000/svg";
  const $ = (id) => document.getElementById(id);

  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const whole = (value) => Math.round(value).toLocaleString("en-US");
  const short = (value) => {
    if (!value) return "0";
    const size = Math.abs(value);
    return size >= 1000 ? whole(value) : value.toPrecision(size >= 100 ? 3 : 2 + (size >= 10));
  };
  const oneIn = (count) => {
    if (!count) return "never";
    const each = look.n_tokens / count;
    return each < 10 ? `1 in ${each.toFixed(1)}` : `1 in ${whole(each)}`;
  };
  // shown in running text: a line break becomes a sign, everything else stays as it is
  const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
  const flat = (text) => text.replace(/\r\n|\r|\n/g, "↵").replace(/\t/g, "⇥").replace(CONTROLS, "�");
  const dotted = (text) => (text === "" ? "(empty)" : flat(text).replace(/ /g, "·"));
  const trimmed = (text) => (flat(text).trim() === "" ? dotted(text) : flat(text).trim());
  const word = (id) => (id < 0 ? "" : trimmed(strings[id]));

  const fires = (i) => look.count[0][i] + (look.signed ? look.count[1][i] : 0);
  const strongest = (i) => Math.max(look.max[0][i], look.signed ? look.max[1][i] : 0);
  const topToken = (i) => {
    const tail = look.signed && look.max[1][i] > look.max[0][i] ? 1 : 0;
    return look.top_token[tail][i];
  };
  const columns = [
    { key: "latent", title: "latent", number: true, width: "5.6rem", value: (i) => look.latent[i], show: (i) => String(look.latent[i]) },
    { key: "density", title: "fires on", number: true, width: "6.2rem", value: fires, show: (i) => oneIn(fires(i)), down: true },
    { key: "strongest", title: look.signed ? "max |a|" : "max", number: true, width: "4.6rem", value: strongest, show: (i) => short(strongest(i)), down: true },
    { key: "token", title: "strongest on", width: "7.4rem", value: (i) => word(topToken(i)).toLowerCase(), show: (i) => word(topToken(i)) },
  ];
  if (look.promoted) {
    const words = (i) => look.promoted[i].slice(0, 4).map(word).join("  ");
    columns.push({ key: "promotes", title: "promotes", value: (i) => words(i).toLowerCase(), show: words, faint: true });
  }

  if (look.names) columns.splice(1, columns.length, ...columns.slice(1, 3), { key: "name", title: "label", value: (i) => look.names[i].toLowerCase(), show: (i) => flat(look.names[i]) });

  const state = { sort: "density", down: true, search: "", filter: "alive", page: 0, latent: null };
  let order = [];
  const haystack = new Array(n);
  const searchable = (i) => {
    if (haystack[i] === undefined) {
      const ids = [look.top_token[0][i]];
      const name = look.names ? look.names[i].toLowerCase() + "\n" : "";
      if (look.signed) ids.push(look.top_token[1][i]);
      if (look.promoted) ids.push(...look.promoted[i], ...look.suppressed[i]);
      haystack[i] = name + ids.filter((id) => id >= 0).map((id) => strings[id].toLowerCase()).join("\n");
    }
    return haystack[i];
  };
  const filters = {
    alive: (i) => fires(i) > 0,
    all: () => true,
    rare: (i) => fires(i) > 0 && fires(i) < look.n_tokens / 10000,
    dense: (i) => fires(i) > look.n_tokens / 10,
    dead: (i) => fires(i) === 0,
  };

  const select = () => {
    const text = state.search.trim().toLowerCase();
    const numbered = /^#?\d+$/.test(text) ? Number(text.replace("#", "")) : null;
    order = [];
    for (let i = 0; i < n; i++) {
      if (!filters[state.filter](i)) continue;
      if (text && look.latent[i] !== numbered && !searchable(i).includes(text)) continue;
      order.push(i);
    }
    const column = columns.find((one) => one.key === state.sort) || columns[1];
    const keys = new Map(order.map((i) => [i, column.value(i)]));
    const sign = state.down ? -1 : 1;
    order.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      if (x === y) return a - b;
      if (x === "") return 1;
      if (y === "") return -1;
      return (x < y ? -1 : 1) * sign;
    });
    if (numbered !== null) order.sort((a, b) => (look.latent[b] === numbered) - (look.latent[a] === numbered));
    state.page = Math.min(state.page, Math.max(0, Math.ceil(order.length / PAGE) - 1));
  };

  const heading = document.createElement("tr");
  for (const column of columns) {
    const cell = make("th", column.number ? "number" : "");
    cell.scope = "col";
    if (column.width) cell.style.width = column.width;
    const button = make("button", "", column.title);
    button.type = "button";
    button.addEventListener("click", () => {
      state.down = state.sort === column.key ? !state.down : Boolean(column.down);
      state.sort = column.key;
      state.page = 0;
      list();
    });
    cell.append(button);
    heading.append(cell);
  }
  $("head").append(heading);

  const list = () => {
    select();
    heading.childNodes.forEach((cell, place) => {
      const sorted = columns[place].key === state.sort;
      if (sorted) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    const first = state.page * PAGE;
    const rows = order.slice(first, first + PAGE).map((i) => {
      const row = make("tr", fires(i) ? "" : "dead");
      row.dataset.place = i;
      row.setAttribute("aria-selected", String(i === state.latent));
      for (const column of columns) {
        row.append(make("td", (column.number ? "number" : "") + (column.faint ? " faint" : ""), column.show(i)));
      }
      return row;
    });
    $("rows").replaceChildren(...rows);
    $("none").hidden = order.length > 0;
    const last = Math.min(order.length, first + PAGE);
    $("range").textContent = order.length ? `${whole(first + 1)} to ${whole(last)} of ${whole(order.length)} latents` : "no latent";
    $("back").disabled = first === 0;
    $("on").disabled = last >= order.length;
  };

  const svg = (tag, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const histogram = (i) => {
    const W = 640, H = 118, BASE = 92;
    const tails = look.signed ? [1, 0] : [0];
    const range = Math.max(...tails.map((t) => look.max[t][i])) || 1;
    const tallest = Math.log1p(Math.max(1, ...tails.flatMap((t) => look.histogram[t][i])));
    const zero = look.signed ? W / 2 : 0;
    const scale = (look.signed ? W / 2 : W) / range;
    const picture = svg("svg", { class: "histogram", viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "xMinYMid", role: "img" });
    picture.append(svg("title", {}, "Tokens per activation"));
    for (const t of tails) {
      const counts = look.histogram[t][i];
      const step = (look.bins_top[t][i] / look.n_bins) * scale;
      counts.forEach((count, place) => {
        if (!count) return;
        const width = Math.min(step, range * scale - place * step);
        const height = Math.max(2, (Math.log1p(count) / tallest) * (BASE - 14));
        const x = t ? zero - place * step - width : zero + place * step;
        const bar = svg("rect", { class: t ? "neg" : "pos", x: x + 0.6, y: BASE - height, width: Math.max(0.8, width - 1.2), height });
        const low = (look.bins_top[t][i] / look.n_bins) * place, high = low + look.bins_top[t][i] / look.n_bins;
        bar.dataset.tip = `${whole(count)} tokens\nactivation ${t ? "−" : ""}${short(low)} to ${t ? "−" : ""}${short(high)}`;
        picture.append(bar);
      });
    }
    picture.append(svg("line", { x1: 0, x2: W, y1: BASE + 0.5, y2: BASE + 0.5 }));
    const label = (x, text, anchor) => picture.append(svg("text", { x, y: H - 7, "text-anchor": anchor }, text));
    if (look.signed) label(0, `−${short(range)}`, "start");
    label(zero, "0", look.signed ? "middle" : "start");
    label(W, short(range), "end");
    return picture;
  };

  const effects = (ids, values, up) => {
    const box = make("div", "effects");
    const largest = Math.max(...values.map(Math.abs)) || 1;
    ids.forEach((id, place) => {
      const chip = make("span", `effect ${up ? "up" : "down"}`, word(id));
      chip.style.setProperty("--alpha", (0.08 + 0.3 * (Math.abs(values[place]) / largest)).toFixed(3));
      chip.dataset.tip = `“${dotted(strings[id])}”\nlogit ${values[place] < 0 ? "−" : "+"}${short(Math.abs(values[place]))} per unit of activation, before the final norm's scale`;
      box.append(chip);
    });
    return box;
  };

  const example = ([row, position, source, before, cutLeft, cutRight, ids, values], i) => {
    const item = document.createElement("li");
    const largest = strongest(i);
    const scaled = (value) => (value / 999) * largest;
    item.append(make("span", "strength", short(scaled(values[before])).replace("-", "−")));
    const text = make("span", "running");
    if (cutLeft) text.append(make("span", "ellipsis", "… "));
    ids.forEach((id, place) => {
      const value = values[place];
      // a leading space stays outside the shade, so that no sliver of it ends a line
      const [, gap, rest] = /^( *)([^]*)$/.exec(flat(strings[id]));
      const shown = rest || gap;
      if (rest && gap && place > 0) text.append(gap);
      const token = make("span", "token", shown);
      if (value) {
        token.classList.add(value > 0 ? "pos" : "neg");
        token.style.setProperty("--alpha", `calc(${(Math.abs(value) / 999).toFixed(3)} * var(--shade))`);
      }
      if (place === before) token.classList.add("peak");
      if (/^[↵⇥]+$/.test(shown) && !value) token.classList.add("odd");
      const where = `row ${row}, position ${position + place - before}`;
      const active = value ? `activation ${value < 0 ? "−" : ""}${short(Math.abs(scaled(value)))}` : "not active";
      token.dataset.tip = `“${dotted(strings[id])}”  ${active}\n${where}${source >= 0 ? ` · ${look.sources[source]}` : ""}`;
      text.append(token);
    });
    if (cutRight) text.append(make("span", "ellipsis", " …"));
    item.append(text);
    return item;
  };

  const tail = (i, t) => {
    const box = make("section", `tail ${t ? "negative" : "positive"}`);
    if (look.signed) {
      const count = look.count[t][i];
      box.append(make("h3", "sign", count ? `${t ? "Below" : "Above"} zero: ${oneIn(count)} tokens` : `Never ${t ? "below" : "above"} zero`));
    }
    if (look.promoted) {
      const pairs = [[look.promoted[i], look.promoted_values[i]], [look.suppressed[i], look.suppressed_values[i]]];
      if (t) pairs.reverse();
      const turn = (values) => (t ? values.map((value) => -value) : values);
      box.append(make("h3", "", "Promotes"), effects(pairs[0][0], turn(pairs[0][1]), true));
      box.append(make("h3", "", "Suppresses"), effects(pairs[1][0], turn(pairs[1][1]), false));
    }
    box.append(make("h3", "", "Strongest contexts"));
    const examples = look.examples[t][i];
    if (examples && examples.length) {
      const items = make("ul", "examples");
      items.append(...examples.map((one) => example(one, i)));
      box.append(items);
    } else {
      box.append(make("p", "small", look.count[t][i] ? "Left out to keep this file small." : "None: it did not fire in these tokens."));
    }
    return box;
  };

  const card = () => {
    const i = state.latent;
    const box = $("card");
    if (i === null) return box.replaceChildren(make("p", "sentence", "Choose a latent on the left."));
    const top = make("div", "card-top");
    const words = make("div");
    words.append(make("h2", "", `Latent ${look.latent[i]}`));
    if (look.names && look.names[i]) words.append(make("p", "name", flat(look.names[i])));
    const sentence = make("p", "sentence");
    if (fires(i)) {
      sentence.append("Fires on ", make("strong", "", `${oneIn(fires(i))} tokens`), ` (${whole(fires(i))} of ${whole(look.n_tokens)}); strongest activation `, make("strong", "", short(strongest(i))), ", shaded fully.");
    } else {
      sentence.append(`Never fired on these ${whole(look.n_tokens)} tokens.`);
    }
    words.append(sentence);
    const steps = make("div", "steps");
    for (const [text, by, name] of [["↑", -1, "previous latent"], ["↓", 1, "next latent"]]) {
      const button = make("button", "quiet-button", text);
      button.type = "button";
      button.setAttribute("aria-label", name);
      button.addEventListener("click", () => step(by));
      steps.append(button);
    }
    top.append(words, steps);
    const tails = make("div", look.signed ? "tails two" : "tails");
    tails.append(tail(i, 0));
    if (look.signed) tails.append(tail(i, 1));
    const parts = [top, tails];
    if (fires(i)) parts.push(make("h3", "", "How strongly it fires"), histogram(i), make("p", "small", "Tokens by activation; bar height is the logarithm of the count."));
    for (const [what, text] of look.details ? look.details[i] : []) {
      parts.push(make("h3", "", what), make("p", "detail", text.replace(CONTROLS, "�")));
    }
    box.replaceChildren(...parts);
    box.scrollTop = 0;
    return box;
  };

  const show = (i, remember = true) => {
    state.latent = i;
    for (const row of $("rows").children) row.setAttribute("aria-selected", String(Number(row.dataset.place) === i));
    card();
    if (remember) history.replaceState(null, "", `#latent=${look.latent[i]}`);
  };
  const step = (by) => {
    const place = order.indexOf(state.latent) + by;
    if (place < 0 || place >= order.length) return;
    if (Math.floor(place / PAGE) !== state.page) {
      state.page = Math.floor(place / PAGE);
      list();
    }
    show(order[place]);
    const row = document.querySelector(`[data-place="${order[place]}"]`);
    if (row) row.scrollIntoView({ block: "nearest" });
  };

  const tip = $("tip");
  document.addEventListener("mousemove", (event) => {
    const target = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    tip.hidden = !target;
    if (!target) return;
    tip.textContent = target.dataset.tip;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - box.width - 8)}px`;
    const under = event.clientY + 20;
    tip.style.top = `${under + box.height > window.innerHeight ? event.clientY - box.height - 12 : under}px`;
  });
  $("rows").addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) show(Number(row.dataset.place));
  });
  let waiting = 0;
  $("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      state.search = event.target.value;
      state.page = 0;
      list();
    }, 120);
  });
  $("filter").addEventListener("change", (event) => {
    state.filter = event.target.value;
    state.page = 0;
    list();
  });
  $("back").addEventListener("click", () => { state.page -= 1; list(); });
  $("on").addEventListener("click", () => { state.page += 1; list(); });
  document.addEventListener("keydown", (event) => {
    if (event.target instanceof Element && event.target.closest("input, select")) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      step(event.key === "ArrowDown" ? 1 : -1);
    }
  });

  const open = () => {
    const asked = /^#latent=(\d+)$/.exec(location.hash);
    const place = look.latent.indexOf(asked ? Number(asked[1]) : look.opening);
    if (asked && place >= 0 && !fires(place) && state.filter !== "all") {
      state.filter = "all";
      $("filter").value = "all";
    }
    list();
    const found = order.indexOf(place);
    if (found < 0) {
      if (order.length) show(order[0], false);
      else card();
      return;
    }
    state.page = Math.floor(found / PAGE);
    list();
    show(place, false);
    const row = document.querySelector(`[data-place="${place}"]`);
    if (row) row.scrollIntoView({ block: "center" });
  };
  window.addEventListener("hashchange", open);
  open();
})();
