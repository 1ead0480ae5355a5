"use strict";
// Rows are data: every text of theirs is put in as text, never as markup.
{
  const HEIGHT = 60, AROUND = 8;
  const byId = (id) => document.getElementById(id);
  const rows = JSON.parse(byId("data").textContent);
  const list = byId("list"), canvas = byId("rows"), main = byId("row"), help = byId("help");
  const words = byId("words"), reason = byId("reason"), least = byId("least"), most = byId("most");
  let shown = rows.map((_, index) => index), current = 0;

  const make = (name, className, ...children) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  };
  const textOf = (side) => side.parts.join("");
  for (const row of rows) {
    const texts = [row.prompt, ...row.sides.map(textOf), row.judgment ?? "", row.message ?? ""];
    row.words = texts.join("\n").toLowerCase();
    row.length = Math.max(0, ...row.sides.map((side) => textOf(side).length));
  }

  const counts = new Map();
  for (const row of rows) counts.set(row.state, (counts.get(row.state) ?? 0) + 1);
  for (const [state, count] of counts) reason.append(new Option(`${state} (${count})`, state));

  // What a row is known by: its prompt, or what else it holds.
  const label = (row) => {
    const text = row.prompt || row.sides.map(textOf).join(" ");
    return text.slice(0, 600).replace(/\s+/g, " ").slice(0, 300).trim() || "(empty)";
  };

  const entry = (place) => {
    const row = rows[shown[place]];
    const made = make("div", "", make("span", "", label(row)));
    const about = `${row.name} · ${row.state} · ${row.length} characters`;
    made.append(make("span", row.lost ? "at lost" : "at", about));
    made.id = `option-${place}`;
    made.setAttribute("role", "option");
    made.setAttribute("aria-selected", String(place === current));
    made.setAttribute("aria-setsize", String(shown.length));
    made.setAttribute("aria-posinset", String(place + 1));
    made.style.top = `${place * HEIGHT}px`;
    made.addEventListener("click", () => select(place));
    return made;
  };

  const draw = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - AROUND);
    const end = Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + AROUND;
    const places = [];
    for (let place = first; place < Math.min(end, shown.length); place += 1) places.push(place);
    canvas.style.height = `${shown.length * HEIGHT}px`;
    canvas.replaceChildren(...places.map(entry));
    list.setAttribute("aria-activedescendant", shown.length ? `option-${current}` : "");
  };

  const said = (kind, title, note, ...content) => {
    const head = make("h3", "", title);
    if (note) head.append(make("span", "of", ` ${note}`));
    const text = make("p", "text", ...content);
    text.dir = "auto";
    return make("div", `said ${kind}`, head, text);
  };

  // Parts of a text are in turn what both sides have and what this one alone has.
  const marked = (parts) => parts.map((part, index) => (index % 2 ? make("mark", "", part) : part));

  const detail = () => {
    main.scrollTop = 0;
    if (!shown.length) {
      main.replaceChildren(make("p", "empty", "No row fits the filters."));
      return;
    }
    const row = rows[shown[current]];
    const sides = make("div", "sides");
    for (const side of row.sides) {
      const reward = side.reward === null ? [] : [`reward ${Number(side.reward.toPrecision(6))}`];
      const notes = [...reward, `${textOf(side).length} characters`, ...(side.model ? [side.model] : [])];
      sides.append(said(side.label, side.label, notes.join(" · "), ...marked(side.parts)));
    }
    const parts = [make("h2", "", `${row.name} · ${row.state}`)];
    if (row.message) parts.push(said("remark", "why", "", row.message));
    if (row.prompt) parts.push(said("prompt", "prompt", "", row.prompt));
    parts.push(sides);
    if (row.judgment !== null) parts.push(said("remark", "judgment", "", row.judgment));
    main.replaceChildren(...parts);
  };

  const select = (place) => {
    current = Math.max(0, Math.min(shown.length - 1, place));
    const top = current * HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + HEIGHT > list.scrollTop + list.clientHeight) {
      list.scrollTop = top + HEIGHT - list.clientHeight;
    }
    draw();
    detail();
  };

  const filter = () => {
    const kept = shown[current];
    const wanted = words.value.toLowerCase();
    const low = Number(least.value || 0), high = most.value === "" ? Infinity : Number(most.value);
    shown = [];
    rows.forEach((row, index) => {
      if (reason.value && row.state !== reason.value) return;
      if (row.length < low || row.length > high || !row.words.includes(wanted)) return;
      shown.push(index);
    });
    byId("count").textContent = `${shown.length} of ${rows.length} rows`;
    select(Math.max(0, shown.indexOf(kept)));
  };

  let waiting = false;
  list.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  });
  window.addEventListener("resize", draw);
  for (const input of [words, reason, least, most]) input.addEventListener("input", filter);
  document.querySelector("form.find").addEventListener("submit", (event) => event.preventDefault());
  byId("help-button").addEventListener("click", () => help.showModal());

  const page = () => Math.max(1, Math.floor(list.clientHeight / HEIGHT) - 1);
  const anywhere = {
    j: () => select(current + 1),
    k: () => select(current - 1),
    "/": () => words.focus(),
    "?": () => help.showModal(),
  };
  const inList = {
    ArrowDown: () => select(current + 1),
    ArrowUp: () => select(current - 1),
    PageDown: () => select(current + page()),
    PageUp: () => select(current - page()),
    Home: () => select(0),
    End: () => select(shown.length - 1),
    Enter: () => main.focus(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
    if (event.key === "Escape") list.focus();
    const action = typing ? undefined
      : anywhere[event.key] ?? (document.activeElement === list ? inList[event.key] : undefined);
    if (!action) return;
    event.preventDefault();
    action();
  });

  filter();
}
